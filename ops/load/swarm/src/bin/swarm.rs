//! `tidegate-swarm`: reads a plan and then commands as JSON lines, answers with events.

use std::io::{self, stdin};
use std::process::ExitCode;

use tidegate_load::control::Lines;
use tidegate_load::plan::Plan;
use tidegate_load::swarm::Swarm;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tidegate-swarm: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> io::Result<()> {
    let mut commands = Lines::new(stdin());
    let Some(line) = commands.wait_line()? else {
        return Ok(());
    };
    let plan = Plan::parse(&line)
        .map_err(|message| io::Error::new(io::ErrorKind::InvalidInput, message))?;
    Swarm::new(plan, commands)?.run()
}
