//! What a swarm is told and tells: commands in, events out.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;

use super::{Awaited, Swarm, invalid, seconds};
use crate::client::Phase;
use crate::control::{Command, Event, Positions, say};
use crate::role::Role;
use crate::sys::monotonic_ns;

impl<F: AsRawFd> Swarm<F> {
    /// Carries out the commands that have been read.
    pub(super) fn obey(&mut self) -> io::Result<()> {
        while let Some(line) = self.commands.next_line() {
            let command = serde_json::from_str(&line)
                .map_err(|error| invalid(format!("command {line:?}: {error}")))?;
            match command {
                Command::Report => say(&Event::Report(self.report()))?,
                Command::Reset => {
                    say(&Event::Report(self.report()))?;
                    self.tally.reset();
                }
                Command::Positions => say(&Event::Positions {
                    channels: self.positions(),
                })?,
                Command::Clock => say(&Event::Clock {
                    monotonic_ns: monotonic_ns(),
                })?,
                Command::Align { offset_ns } => self.tally.align(offset_ns),
                Command::DropOff => self.drop_off()?,
                Command::ComeBack => self.come_back(),
                Command::Await {
                    deliveries,
                    timeout_s,
                } => {
                    if self.awaited.is_some() {
                        return Err(invalid("an await while another is under way".to_owned()));
                    }
                    let deadline_ns = monotonic_ns() + seconds(timeout_s);
                    self.awaited = Some(Awaited {
                        deliveries,
                        deadline_ns,
                    });
                }
            }
        }
        Ok(())
    }

    /// Says what has become true since the last turn.
    pub(super) fn tell(&mut self) -> io::Result<()> {
        let now_ns = monotonic_ns();
        if self.unsettled == 0 && !self.ready_said {
            self.ready_said = true;
            let elapsed_s = (now_ns - self.started_ns) as f64 / 1e9;
            say(&Event::Ready {
                connected: self.connected,
                seconds: elapsed_s,
            })?;
        }
        if let Some(Awaited {
            deliveries,
            deadline_ns,
        }) = self.awaited
        {
            let so_far = self.tally.deliveries;
            if so_far >= deliveries {
                self.awaited = None;
                say(&Event::Reached { deliveries: so_far })?;
            } else if now_ns >= deadline_ns {
                self.awaited = None;
                say(&Event::Late { deliveries: so_far })?;
            }
        }
        Ok(())
    }

    fn drop_off(&mut self) -> io::Result<()> {
        for client in &mut self.clients {
            if client.phase == Phase::Open && client.role == Role::Faithful {
                client.drop_off()?;
                self.connected -= 1;
            }
        }
        Ok(())
    }

    fn come_back(&mut self) {
        for (index, client) in (0..).zip(&mut self.clients) {
            if client.phase == Phase::Away {
                client.phase = Phase::Queued;
                self.queue.push_back(index);
            }
        }
    }

    fn positions(&self) -> BTreeMap<&str, Positions> {
        let mut channels: BTreeMap<&str, Positions> = BTreeMap::new();
        let faithful = self
            .clients
            .iter()
            .filter(|client| client.role == Role::Faithful);
        for subscription in faithful.flat_map(|client| &client.subscriptions) {
            let Some(position) = &subscription.position else {
                continue;
            };
            let offset = position.offset;
            channels
                .entry(&subscription.channel)
                .and_modify(|positions| {
                    positions.subscribers += 1;
                    positions.offset_min = positions.offset_min.min(offset);
                    positions.offset_max = positions.offset_max.max(offset);
                })
                .or_insert(Positions {
                    subscribers: 1,
                    offset_min: offset,
                    offset_max: offset,
                });
        }
        channels
    }

    pub(super) fn finish(&mut self) -> io::Result<()> {
        let report = self.report();
        for index in 0..self.clients.len() {
            let moment = self.moment();
            self.clients[index].leave(moment, Phase::Done);
        }
        say(&Event::Final(report))
    }
}
