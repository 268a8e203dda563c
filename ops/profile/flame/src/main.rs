//! `tidegate-flame fold`: from what `perf script` says to folded stacks.
//! `tidegate-flame draw TITLE SUBTITLE`: from folded stacks to a flame graph in SVG.
//! Both from standard input to standard output.

use std::io::{self, Write};
use std::process::ExitCode;

use tidegate_flame::{draw, fold};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut output = io::BufWriter::new(io::stdout().lock());
    let done = match arguments[..] {
        ["fold"] => fold(io::stdin().lock(), &mut output),
        ["draw", title, subtitle] => draw(io::stdin().lock(), title, subtitle, &mut output),
        _ => {
            eprintln!("usage: tidegate-flame fold | draw TITLE SUBTITLE");
            return ExitCode::from(2);
        }
    };
    match done.and_then(|()| output.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tidegate-flame: {error}");
            ExitCode::FAILURE
        }
    }
}
