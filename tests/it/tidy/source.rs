//! Reads the workspace: which crates depend on which, and every Rust file as lines and tokens, its unit tests set apart.

use cargo_metadata::{Metadata, MetadataCommand};
use proc_macro2::{TokenStream, TokenTree};
use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use syn::spanned::Spanned;
use syn::visit::Visit;

/// The repository.
pub(super) struct Workspace {
    pub(super) root: PathBuf,
    pub(super) metadata: Metadata,
    pub(super) sources: Vec<Source>,
}

/// One Rust file.
pub(super) struct Source {
    /// The path from the repository's root, with `/`.
    pub(super) path: String,
    pub(super) text: String,
    /// Identifiers and literals outside of comments and unit tests, with their lines.
    pub(super) tokens: Vec<(String, usize)>,
    /// Name, first line and length in lines of every function outside of unit tests.
    pub(super) functions: Vec<(String, usize, usize)>,
    tests: Vec<RangeInclusive<usize>>,
}

impl Workspace {
    pub(super) fn read() -> Self {
        let metadata = MetadataCommand::new()
            .no_deps()
            .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
            .exec()
            .unwrap();
        let root = metadata.workspace_root.clone().into_std_path_buf();
        let mut sources = Vec::new();
        for package in &metadata.packages {
            for path in files(package.manifest_path.parent().unwrap().as_std_path(), &["rs"]) {
                sources.push(Source::read(&root, &path));
            }
        }
        Self { root, metadata, sources }
    }

    /// A file's text, empty when it is not there.
    pub(super) fn text(&self, path: &str) -> String {
        fs::read_to_string(self.root.join(path)).unwrap_or_default()
    }

    /// The sources under a folder.
    pub(super) fn under<'a>(&'a self, folder: &'a str) -> impl Iterator<Item = &'a Source> {
        self.sources.iter().filter(move |source| source.path.starts_with(folder))
    }
}

impl Source {
    fn read(root: &Path, path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap();
        let path = path.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/");
        let file = syn::parse_file(&text).unwrap_or_else(|error| panic!("{path} is not Rust: {error}"));
        let mut finder = Finder::default();
        finder.visit_file(&file);
        let mut tokens = Vec::new();
        flatten(text.parse().unwrap(), &mut tokens);
        tokens.retain(|(_, line)| !finder.tests.iter().any(|tests| tests.contains(line)));
        finder.functions.retain(|(_, line, _)| !finder.tests.iter().any(|tests| tests.contains(line)));
        Self { path, text, tokens, functions: finder.functions, tests: finder.tests }
    }

    /// Lines without the unit tests.
    pub(super) fn lines(&self) -> usize {
        let tests: usize = self.tests.iter().map(|lines| lines.end() - lines.start() + 1).sum();
        self.text.lines().count() - tests
    }

    /// The first line on which one of these words is an identifier.
    pub(super) fn names(&self, words: &[&str]) -> Option<(&str, usize)> {
        self.tokens
            .iter()
            .find(|(token, _)| words.contains(&token.as_str()))
            .map(|(token, line)| (token.as_str(), *line))
    }
}

#[derive(Default)]
struct Finder {
    tests: Vec<RangeInclusive<usize>>,
    functions: Vec<(String, usize, usize)>,
}

impl Finder {
    fn function(&mut self, name: String, span: proc_macro2::Span) {
        let (first, last) = (span.start().line, span.end().line);
        self.functions.push((name, first, last - first + 1));
    }
}

impl<'ast> Visit<'ast> for Finder {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        let is_test = |attribute: &syn::Attribute| {
            attribute.path().is_ident("cfg")
                && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
        };
        if module.content.is_some() && module.attrs.iter().any(is_test) {
            self.tests.push(module.span().start().line..=module.span().end().line);
        }
        syn::visit::visit_item_mod(self, module);
    }

    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.function(function.sig.ident.to_string(), function.block.span());
        syn::visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.function(function.sig.ident.to_string(), function.block.span());
        syn::visit::visit_impl_item_fn(self, function);
    }
}

fn flatten(stream: TokenStream, into: &mut Vec<(String, usize)>) {
    for token in stream {
        match token {
            TokenTree::Group(group) => flatten(group.stream(), into),
            TokenTree::Punct(_) => {}
            other => into.push((other.to_string(), other.span().start().line)),
        }
    }
}

/// All files with one of these extensions under a folder; build outputs and hidden folders are left out.
pub(super) fn files(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| !path.file_name().unwrap().to_string_lossy().starts_with('.') && !path.ends_with("target"))
        .flat_map(|path| if path.is_dir() { files(&path, extensions) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|extension| extensions.iter().any(|wanted| extension == *wanted)))
        .collect();
    found.sort();
    found
}
