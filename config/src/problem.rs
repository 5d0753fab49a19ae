//! What is wrong with a configuration file: every problem, each with its place and, where one is near, the word meant.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// One thing wrong in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub path: PathBuf,
    /// Line, from 1; 0 when the file as a whole is meant.
    pub line: usize,
    /// Column in characters, from 1; 0 when the file as a whole is meant.
    pub column: usize,
    /// What is wrong and what to do about it. Never holds a secret.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.path.display())?;
        if self.line > 0 {
            write!(f, "{}:{}:", self.line, self.column)?;
        }
        write!(f, " {}", self.message)
    }
}

/// All that is wrong with a configuration file; displayed as one `file:line:col: message` a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    /// The problems, by their place in the file; never empty.
    pub problems: Vec<Problem>,
}

impl ConfigErrors {
    /// A problem of the file as a whole.
    pub(crate) fn whole(path: &Path, message: String) -> Self {
        Self { problems: vec![Problem { path: path.to_owned(), line: 0, column: 0, message }] }
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// A place in the text, in bytes.
pub(crate) type Span = Range<usize>;

/// Collects problems while a file is read and checked.
pub(crate) struct Problems<'a> {
    text: &'a str,
    found: Vec<(usize, String)>,
}

impl<'a> Problems<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self { text, found: Vec::new() }
    }

    pub(crate) fn add(&mut self, span: &Span, message: impl Into<String>) {
        self.found.push((span.start, message.into()));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Line and column, both from 1, of a byte offset.
    pub(crate) fn place(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }

    /// All problems in the order of the file; `None` when there are none.
    pub(crate) fn into_errors(mut self, path: &Path) -> Option<ConfigErrors> {
        let mut found = std::mem::take(&mut self.found);
        if found.is_empty() {
            return None;
        }
        found.sort_by_key(|(offset, _)| *offset);
        let problem = |(offset, message)| {
            let (line, column) = self.place(offset);
            Problem { path: path.to_owned(), line, column, message }
        };
        Some(ConfigErrors { problems: found.into_iter().map(problem).collect() })
    }
}

/// The candidate nearest to `word`, if one is near enough to have been meant.
pub(crate) fn nearest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let allowed = (word.chars().count() / 3).clamp(1, 4);
    candidates
        .into_iter()
        .map(|candidate| (strsim::osa_distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, candidate)| candidate)
}

/// `; did you mean `x`?` for the nearest candidate, else nothing.
pub(crate) fn did_you_mean<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> String {
    nearest(word, candidates).map_or_else(String::new, |near| format!("; did you mean `{near}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_lines_and_characters_from_one() {
        let problems = Problems::new("a = 1\nb = \"ü\" x\n");
        assert_eq!(problems.place(0), (1, 1));
        assert_eq!(problems.place(6), (2, 1));
        assert_eq!(problems.place("a = 1\nb = \"ü\" ".len()), (2, 9));
        assert_eq!(problems.place(999), (3, 1));
    }

    #[test]
    fn suggests_only_what_is_near() {
        let keys = ["listen", "tls", "admin_key"];
        assert_eq!(nearest("lisen", keys), Some("listen"));
        assert_eq!(nearest("adminkey", keys), Some("admin_key"));
        assert_eq!(nearest("port", keys), None);
    }
}
