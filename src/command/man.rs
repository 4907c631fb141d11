//! `celeriac man`: the manual pages.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use celeriac::version::{COMMIT, VERSION};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::exit::{self, Exit};
use super::{print, print_line};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Writes the pages of all commands to this folder, which is created if it does not exist.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

/// Prints the page of the program, or writes the pages of all commands and prints their paths.
pub(crate) fn run(arguments: &Arguments, command_line: clap::Command) -> anyhow::Result<ExitCode> {
    let mut command_line = command_line.disable_help_subcommand(true);
    command_line.build();
    let Some(folder) = &arguments.out else {
        print(&page(&command_line, &manual(&command_line))?);
        return Ok(Exit::Done.into());
    };
    std::fs::create_dir_all(folder)
        .with_context(|| format!("out: the folder {} cannot be made", folder.display()))?;
    write_all(&command_line, folder)?;
    Ok(Exit::Done.into())
}

/// Writes the page of a command and those of its subcommands.
fn write_all(command: &clap::Command, folder: &Path) -> anyhow::Result<()> {
    let man = manual(command);
    let path = folder.join(man.get_filename());
    let text = page(command, &man)?;
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    print_line(&path.display().to_string());
    for below in visible_subcommands(command) {
        write_all(below, folder)?;
    }
    Ok(())
}

fn manual(command: &clap::Command) -> Man {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    // A page needs a date. The date of the commit is the last word of `COMMIT`.
    let is_date = |word: &&str| word.len() == "2026-11-25".len() && word.contains('-');
    let last_word = COMMIT.and_then(|commit| commit.split(' ').next_back());
    let date = last_word.filter(is_date).unwrap_or(VERSION);
    Man::new(command.clone())
        .title(name.to_uppercase())
        .date(date)
        .source(format!("celeriac {VERSION}"))
        .manual("Celeriac")
}

/// The text of a page, with the sections in the usual order.
fn page(command: &clap::Command, man: &Man) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    if visible_subcommands(command).next().is_some() {
        man.render_subcommands_section(&mut text)?;
    }
    man.render_options_section(&mut text)?;
    let mut rest = Roff::default();
    rest.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in exit::CODES {
        rest.control("TP", []);
        rest.text([bold(code)]);
        rest.text([roman(meaning)]);
    }
    let name = command.get_display_name().unwrap_or_default();
    if let Some((above, _)) = name.rsplit_once('-') {
        rest.control("SH", ["SEE ALSO"]);
        rest.text([bold(above), roman("(1)")]);
    }
    rest.to_writer(&mut text)?;
    Ok(text)
}

fn visible_subcommands(command: &clap::Command) -> impl Iterator<Item = &clap::Command> {
    command.get_subcommands().filter(|below| !below.is_hide_set())
}
