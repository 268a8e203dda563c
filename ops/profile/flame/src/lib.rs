//! Folded stacks: one line for each stack that was seen, its frames from the root to the leaf with
//! semicolons between, a blank, and how often.

use std::fmt::Write as _;
use std::io::{self, BufRead, Write};

use inferno::collapse::Collapse;
use inferno::collapse::perf::{Folder, Options as FoldOptions};
use inferno::flamegraph::color::MultiPalette;
use inferno::flamegraph::{self, Options as DrawOptions, Palette};

/// Folds what `perf script` says; without the field `period`, a stack counts as often as it was
/// seen. Frames of the kernel end in `_[k]`.
///
/// # Errors
/// Of reading and writing; `InvalidData` for what `perf script` does not say.
pub fn fold(perf_script: impl BufRead, mut folded: impl Write) -> io::Result<()> {
    let mut options = FoldOptions::default();
    options.annotate_kernel = true;
    let mut mangled = Vec::new();
    Folder::from(options).collapse(perf_script, &mut mangled)?;
    for line in String::from_utf8_lossy(&mangled).lines() {
        writeln!(folded, "{}", demangled(line))?;
    }
    Ok(())
}

/// Draws folded stacks as one SVG without references to anything else.
///
/// # Errors
/// Of reading and writing; also where there is no stack.
pub fn draw(folded: impl BufRead, title: &str, subtitle: &str, svg: impl Write) -> io::Result<()> {
    let mut options = DrawOptions::default();
    options.title = title.to_owned();
    options.subtitle = Some(subtitle.to_owned());
    options.colors = Palette::Multi(MultiPalette::Rust);
    // The same name has the same colour in every graph, so that two can be compared.
    options.deterministic = true;
    flamegraph::from_reader(&mut options, folded, svg)
}

fn demangled(line: &str) -> String {
    let (stack, count) = line.rsplit_once(' ').unwrap_or((line, ""));
    let mut told = String::with_capacity(line.len());
    for (place, frame) in stack.split(';').enumerate() {
        if place > 0 {
            told.push(';');
        }
        let name = format!("{:#}", rustc_demangle::demangle(frame));
        // Of an array's type, `[u8; 16]`: here it would end the frame.
        told.push_str(&name.replace(';', ":"));
    }
    let _ = write!(told, " {count}");
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = "\
python  3673 24160.256329: cpu-clock:ppp: 
\tffffffff8200ec5b tcp_sendmsg+0x2b ([kernel.kallsyms])
\t          10ab59 __send+0x19 (/usr/lib/x86_64-linux-gnu/libc.so.6)
\t          19989c _ZN15tidegate_engine7reactor7Reactor3run17h948f20df147f01b6E+0x4c (/a/_engine.so)
\t            1080 _start+0x20 (/usr/bin/python3.11)

python  3673 24160.277772: cpu-clock:ppp: 
\tffffffff8200ec5b tcp_sendmsg+0x2b ([kernel.kallsyms])
\t          10ab59 __send+0x19 (/usr/lib/x86_64-linux-gnu/libc.so.6)
\t          19989c _ZN15tidegate_engine7reactor7Reactor3run17h948f20df147f01b6E+0x4c (/a/_engine.so)
\t            1080 _start+0x20 (/usr/bin/python3.11)

";

    fn folded(script: &str) -> String {
        let mut folded = Vec::new();
        fold(script.as_bytes(), &mut folded).unwrap();
        String::from_utf8(folded).unwrap()
    }

    #[test]
    fn equal_stacks_are_one_line_from_root_to_leaf() {
        assert_eq!(
            folded(SCRIPT),
            "python;_start;tidegate_engine::reactor::Reactor::run;__send;tcp_sendmsg_[k] 2\n"
        );
    }

    #[test]
    fn names_of_the_newer_mangling_are_readable_too() {
        let name = "_RNvMCsdU2QnRdmiLm_4testNtB2_7Reactor4turn";
        let old = "_ZN15tidegate_engine7reactor7Reactor3run17h948f20df147f01b6E";
        assert_eq!(
            folded(&SCRIPT.replace(old, name)),
            "python;_start;<test::Reactor>::turn;__send;tcp_sendmsg_[k] 2\n"
        );
    }

    #[test]
    fn a_semicolon_within_a_name_ends_no_frame() {
        assert_eq!(
            demangled("a;_RINvCsdU2QnRdmiLm_4test4takeAhj10_EB2_ 7"),
            "a;test::take::<[u8: 16]> 7"
        );
    }

    #[test]
    fn no_stack_is_an_empty_text_and_no_graph() {
        assert_eq!(folded(""), "");
        assert!(draw(io::empty(), "title", "", io::sink()).is_err());
    }

    #[test]
    fn a_graph_has_every_name_and_needs_nothing_else() {
        let mut svg = Vec::new();
        let stacks = "python;tidegate_engine::reactor::Reactor::run 2\n";
        draw(stacks.as_bytes(), "worker 0", "10 s", &mut svg).unwrap();
        let svg = String::from_utf8(svg).unwrap();
        assert!(svg.contains("worker 0") && svg.contains("10 s"));
        assert!(svg.contains("tidegate_engine::reactor::Reactor::run (2 samples, 100.00%)"));
        assert!(svg.contains("<script") && !svg.contains("href=\"http"));
    }
}
