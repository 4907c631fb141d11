//! `celeriac completion`: completion scripts for shells.

use std::process::ExitCode;

use celeriac::version::VERSION;
use clap_complete::Shell;

use super::exit::Exit;
use super::print;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The shell.
    shell: Shell,
}

/// Prints the script.
pub(crate) fn run(arguments: &Arguments, command_line: &clap::Command) -> ExitCode {
    let mut command_line = visible(command_line).version(VERSION);
    // Into memory first, because the generator panics if its output is closed.
    let mut script = Vec::new();
    let name = command_line.get_name().to_owned();
    clap_complete::generate(arguments.shell, &mut command_line, name, &mut script);
    print(&script);
    Exit::Done.into()
}

/// The command line without hidden arguments and commands, which the generators would include.
fn visible(command: &clap::Command) -> clap::Command {
    let about = command.get_about().cloned().unwrap_or_default();
    clap::Command::new(command.get_name().to_owned())
        .about(about)
        .args(command.get_arguments().filter(|argument| !argument.is_hide_set()))
        .subcommands(command.get_subcommands().filter(|it| !it.is_hide_set()).map(visible))
}
