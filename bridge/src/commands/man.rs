//! The manual page: one for the program and its commands, made from the help, so that the two cannot differ.

use std::io;

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};

/// The page, as roff.
pub fn page(mut command: Command) -> io::Result<Vec<u8>> {
    command.build();
    let mut page = Vec::new();
    let man = Man::new(command.clone()).manual("ext-bridge");
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([bold("ext-bridge"), roman(" [options] "), italic("command")]);
    roff.control("SH", ["COMMANDS"]);
    commands(&mut roff, "", &command);
    roff.to_writer(&mut page)?;
    man.render_options_section(&mut page)?;
    let mut roff = Roff::new();
    roff.control("SH", ["NOTES"]);
    roff.control("nf", []);
    for line in command
        .get_after_help()
        .map(ToString::to_string)
        .unwrap_or_default()
        .lines()
    {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
    roff.to_writer(&mut page)?;
    man.render_version_section(&mut page)?;
    Ok(page)
}

/// Each command with its own arguments; those of all commands have a section of their own.
fn commands(roff: &mut Roff, before: &str, parent: &Command) {
    for command in parent
        .get_subcommands()
        .filter(|c| !c.is_hide_set() && c.get_name() != "help")
    {
        let name = format!("{before}{}", command.get_name());
        if command.has_subcommands() {
            commands(roff, &format!("{name} "), command);
            continue;
        }
        let own = || {
            command
                .get_arguments()
                .filter(|a| !a.is_global_set() && !a.is_hide_set() && a.get_id() != "help")
        };
        let mut header = vec![bold(&*name)];
        for argument in own().filter(|argument| argument.is_positional()) {
            header.push(roman(" "));
            header.push(italic(argument.get_id().as_str().to_uppercase()));
        }
        roff.control("TP", []);
        roff.text(header);
        roff.text([roman(command.get_about().map(ToString::to_string).unwrap_or_default())]);
        for argument in own() {
            let mut header = match argument.get_long() {
                Some(long) => vec![bold(format!("--{long}"))],
                None => vec![italic(argument.get_id().as_str().to_uppercase())],
            };
            if let (Some(_), Some([value, ..])) = (argument.get_long(), argument.get_value_names())
                && argument.get_action().takes_values()
            {
                header.extend([roman(" "), italic(value.as_str())]);
            }
            roff.control("RS", []);
            roff.control("TP", []);
            roff.text(header);
            roff.text([roman(argument.get_help().map(ToString::to_string).unwrap_or_default())]);
            roff.control("RE", []);
        }
    }
}
