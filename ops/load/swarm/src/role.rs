//! How a client behaves: most are faithful, some are told to stall or to misbehave, so that the
//! others can be seen not to suffer from it.

use std::fmt;

use crate::plan::Plan;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Reads, answers, and is checked in everything.
    Faithful,
    /// Subscribes and never reads again.
    Stalled,
    /// Commits its misdeed, is thrown out or leaves, and comes back to do it again.
    Hostile(Misdeed),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misdeed {
    /// Connects and says nothing.
    Silence,
    /// Sends half of its request and no more.
    HalfRequest,
    /// Sends bytes that are no request.
    Garbage,
    /// Opens properly, then sends bytes that are no frame.
    BadFrame,
    /// Opens properly, then cuts the connection by a reset.
    Reset,
}

const MISDEEDS: [Misdeed; 5] = [
    Misdeed::Silence,
    Misdeed::HalfRequest,
    Misdeed::Garbage,
    Misdeed::BadFrame,
    Misdeed::Reset,
];

/// Neither a request nor a frame of any dialect, long enough to be judged.
pub const GARBAGE: [u8; 64] = [0xA5; 64];

impl Role {
    /// The role of the client of that number: both shares are spread evenly over the numbers.
    pub fn of(plan: &Plan, number: u32) -> Role {
        let stall = plan.stall_percent / 100.0;
        if takes_a_turn(stall, number) {
            return Role::Stalled;
        }
        // Of those that do not stall, such that it is the wanted share of all.
        let misbehave = plan.misbehave_percent / 100.0 / (1.0 - stall);
        let rank = number - turns_before(stall, number);
        if takes_a_turn(misbehave, rank) {
            let turn = turns_before(misbehave, rank) as usize;
            Role::Hostile(MISDEEDS[turn % MISDEEDS.len()])
        } else {
            Role::Faithful
        }
    }
}

/// How many of the numbers below `number` belong to a `share` (0 to 1) that is spread evenly.
fn turns_before(share: f64, number: u32) -> u32 {
    (f64::from(number) * share) as u32
}

fn takes_a_turn(share: f64, number: u32) -> bool {
    turns_before(share, number + 1) > turns_before(share, number)
}

impl fmt::Display for Misdeed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Misdeed::Silence => "silence",
            Misdeed::HalfRequest => "half a request",
            Misdeed::Garbage => "garbage",
            Misdeed::BadFrame => "bad frame",
            Misdeed::Reset => "reset",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(extra: &str) -> Plan {
        let text = format!(r#"{{"address":"127.0.0.1:1","connections":1,"run_s_max":1{extra}}}"#);
        Plan::parse(&text).unwrap()
    }

    #[test]
    fn shares_are_kept_over_every_run_of_numbers() {
        let plan = plan(r#","stall_percent":10,"misbehave_percent":2.5"#);
        for start in [0, 400, 123_200] {
            let roles: Vec<_> = (start..start + 400).map(|n| Role::of(&plan, n)).collect();
            let stalled = roles.iter().filter(|role| **role == Role::Stalled).count();
            let faithful = roles.iter().filter(|role| **role == Role::Faithful).count();
            assert_eq!((stalled, faithful), (40, 350), "of 400 from {start}");
        }
    }

    #[test]
    fn misbehaving_clients_go_through_all_misdeeds() {
        let plan = plan(r#","misbehave_percent":50"#);
        let seen: Vec<_> = (0..10).map(|number| Role::of(&plan, number)).collect();
        for misdeed in MISDEEDS {
            assert!(seen.contains(&Role::Hostile(misdeed)), "{misdeed}");
        }
        assert_eq!(
            seen.iter().filter(|role| **role == Role::Faithful).count(),
            5
        );
    }
}
