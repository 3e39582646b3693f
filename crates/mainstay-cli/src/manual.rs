//! Manual pages, generated from the same model as `--help`.

use std::fs;
use std::io;
use std::path::Path;

/// Writes a page for the program and one for each subcommand into `folder`, which is created if it does not exist.
///
/// # Errors
/// The folder or a file cannot be written.
pub(crate) fn write(command: clap::Command, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    clap_mangen::generate_to(command, folder)
}
