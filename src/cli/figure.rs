//! A file that is to hold a drawing.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A file that is to hold a drawing, opened before anything is measured: what cannot be written is known
/// then. What is there stays until the drawing takes its place.
pub(super) struct Figure {
    path: PathBuf,
    file: File,
    /// Whether it was made for a drawing that is not there yet.
    is_empty: bool,
}

impl Figure {
    /// Opens the file, if one is asked for.
    pub(super) fn open(path: Option<&Path>) -> Result<Option<Self>, String> {
        let open = |path: &Path| {
            let is_empty = !path.exists();
            let file = File::options().write(true).create(true).truncate(false).open(path);
            let file = file.map_err(|error| cannot(path, &error))?;
            Ok(Self { path: path.to_owned(), file, is_empty })
        };
        path.map(open).transpose()
    }

    /// Writes the drawing in place of what was there.
    pub(super) fn write(mut self, svg: &str) -> Result<(), String> {
        let written = (|| {
            if self.file.metadata()?.is_file() {
                self.file.set_len(0)?;
            }
            self.file.write_all(svg.as_bytes())
        })();
        self.is_empty = false;
        written.map_err(|error| cannot(&self.path, &error))
    }
}

impl Drop for Figure {
    fn drop(&mut self) {
        if self.is_empty {
            // Where it cannot be removed, it is empty.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn cannot(path: &Path, error: &io::Error) -> String {
    format!("cannot write the figure {}: {error}", path.display())
}
