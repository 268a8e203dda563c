//! `tidegate-bare`: the baseline server; reads a plan and then commands as JSON lines.

use std::io::{self, stdin};
use std::process::ExitCode;

use tidegate_load::bare::Bare;
use tidegate_load::control::Lines;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tidegate-bare: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> io::Result<()> {
    let mut commands = Lines::new(stdin());
    let Some(line) = commands.wait_line()? else {
        return Ok(());
    };
    Bare::start(&serde_json::from_str(&line)?, commands)?.run()
}
