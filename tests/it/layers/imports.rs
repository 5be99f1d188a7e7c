//! Which file imports which, read from source text.
//!
//! An import is a `use`, a `pub use`, or a path in code (`super::error::StoreError`). Its target is the file of the module
//! that the path names. `mod x;` declares a module and imports nothing. Items below `#[cfg(test)]`, comments and strings do
//! not count.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs,
    iter::Peekable,
    path::Path,
};

use proc_macro2::{Delimiter, TokenStream, TokenTree, token_stream};

/// A file, as `src/queue/memory.rs`.
pub(super) type File = String;

/// Each file, with the files that it imports.
pub(super) type Imports = BTreeMap<File, BTreeSet<File>>;

/// The sources of one crate.
pub(super) struct Crate {
    /// The name by which others import it.
    name: String,
    /// By module: `queue.rs` is `["queue"]`, `lib.rs` is `[]`.
    files: BTreeMap<Module, Source>,
}

struct Source {
    file: File,
    /// Without comments.
    tokens: TokenStream,
    /// And without tests: of a file `tests.rs`, nothing.
    code: TokenStream,
}

type Module = Vec<String>;

impl Crate {
    /// Reads all `.rs` files below `directory`, which is relative to the workspace.
    pub(super) fn read(name: &str, directory: &str) -> Self {
        let mut files = Vec::new();
        read_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join(directory), "", &mut files);
        Self::new(name, directory, files)
    }

    /// Files are given as path below `directory` and text.
    pub(super) fn new<P: AsRef<str>, T: AsRef<str>>(
        name: &str,
        directory: &str,
        files: impl IntoIterator<Item = (P, T)>,
    ) -> Self {
        let files: Vec<_> = files.into_iter().collect();
        let has_lib = files.iter().any(|(path, _)| path.as_ref() == "lib.rs");
        let parsed = |(path, text): &(P, T)| {
            let (path, text) = (path.as_ref(), text.as_ref());
            let file = format!("{directory}/{path}");
            let tokens: TokenStream = text.parse().unwrap_or_else(|error| panic!("{file}: {error}"));
            let is_tests = path.ends_with("/tests.rs");
            let code = if is_tests { TokenStream::new() } else { without_tests(tokens.clone()) };
            let declares_tests = text.contains("mod tests;") && !text.contains("#[cfg(test)]\nmod tests;");
            assert!(!declares_tests, "{file}: tests.rs is for tests only");
            (module_of(path, has_lib), Source { file, tokens, code })
        };
        Self { name: name.to_owned(), files: files.iter().map(parsed).collect() }
    }

    /// Each file with the words of its code.
    pub(super) fn words(&self, with_tests: bool) -> impl Iterator<Item = (&File, BTreeSet<String>)> {
        self.files.values().map(move |Source { file, tokens, code }| {
            let mut words = BTreeSet::new();
            collect_words(if with_tests { tokens } else { code }.clone(), &mut words);
            (file, words)
        })
    }
}

/// All imports between the files of these crates.
pub(super) fn imports(crates: &[Crate]) -> Imports {
    let mut imports = Imports::new();
    for one in crates {
        for (module, Source { file, code, .. }) in &one.files {
            let mut paths = Vec::new();
            collect_paths(code.clone(), module, &mut paths);
            let targets = paths.iter().filter_map(|(module, path)| target(crates, one, module, path));
            let targets = targets.filter(|target| *target != file).cloned().collect();
            imports.insert(file.clone(), targets);
        }
    }
    imports
}

/// The shortest way from a file back to itself, for each group of files that import each other.
pub(super) fn circles(imports: &Imports) -> Vec<Vec<File>> {
    let mut circles = Vec::<Vec<File>>::new();
    let mut grouped = BTreeSet::new();
    for file in imports.keys().filter(|file| way(imports, file, file).is_some()) {
        if !grouped.contains(file) {
            let is_in_group =
                |other: &&File| way(imports, file, other).is_some() && way(imports, other, file).is_some();
            let group: Vec<_> = imports.keys().filter(is_in_group).collect();
            circles.extend(group.iter().filter_map(|one| way(imports, one, one)).min_by_key(Vec::len));
            grouped.extend(group);
        }
    }
    circles
}

/// The shortest way of at least one import, both ends included.
fn way(imports: &Imports, from: &File, to: &File) -> Option<Vec<File>> {
    let mut ways = VecDeque::from([vec![from.clone()]]);
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop_front() {
        for next in way.last().and_then(|last| imports.get(last)).into_iter().flatten() {
            let longer = [way.as_slice(), std::slice::from_ref(next)].concat();
            if next == to {
                return Some(longer);
            }
            if seen.insert(next) {
                ways.push_back(longer);
            }
        }
    }
    None
}

fn read_files(directory: &Path, prefix: &str, files: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().into_string().unwrap());
        if entry.file_type().unwrap().is_dir() {
            read_files(&entry.path(), &format!("{name}/"), files);
        } else if name.ends_with(".rs") {
            files.push((name, fs::read_to_string(entry.path()).unwrap()));
        }
    }
}

/// A `main.rs` beside a `lib.rs` is a separate crate that only imports.
fn module_of(path: &str, has_lib: bool) -> Module {
    let path = path.trim_end_matches(".rs").trim_end_matches("/mod");
    match path {
        "lib" => Vec::new(),
        "main" if !has_lib => Vec::new(),
        path => path.split('/').map(str::to_owned).collect(),
    }
}

/// Leaves out attributes, and the items below `#[cfg(test)]`.
fn without_tests(tokens: TokenStream) -> TokenStream {
    let mut kept = Vec::new();
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        if is_punct(&token, '#') {
            while tokens.next_if(|next| is_punct(next, '!')).is_some() {}
            let attribute = tokens.next_if(|next| delimiter(next) == Some(Delimiter::Bracket));
            if attribute.is_some_and(|attribute| attribute.to_string().replace(' ', "") == "[cfg(test)]") {
                // The item ends with its block, or with a semicolon.
                for token in tokens.by_ref() {
                    if delimiter(&token) == Some(Delimiter::Brace) || is_punct(&token, ';') {
                        break;
                    }
                }
            }
        } else if let TokenTree::Group(group) = token {
            let inner = without_tests(group.stream());
            kept.push(TokenTree::Group(proc_macro2::Group::new(group.delimiter(), inner)));
        } else {
            kept.push(token);
        }
    }
    kept.into_iter().collect()
}

fn collect_words(tokens: TokenStream, words: &mut BTreeSet<String>) {
    for token in tokens {
        match token {
            TokenTree::Ident(word) => drop(words.insert(word.to_string())),
            TokenTree::Group(group) => collect_words(group.stream(), words),
            _ => {}
        }
    }
}

type Tokens = Peekable<token_stream::IntoIter>;

/// Paths of at least two names, each with the module that contains it.
fn collect_paths(tokens: TokenStream, module: &Module, paths: &mut Vec<(Module, Vec<String>)>) {
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Ident(word) if word == "use" => {
                collect_use(&mut tokens, Vec::new(), module, paths);
            }
            // `pub(in crate::x)` is no import.
            TokenTree::Ident(word) if word == "pub" => {
                tokens.next_if(|next| delimiter(next) == Some(Delimiter::Parenthesis));
            }
            TokenTree::Ident(word) if word == "mod" => {
                let name = tokens.next().unwrap().to_string();
                if let Some(TokenTree::Group(body)) =
                    tokens.next_if(|next| delimiter(next) == Some(Delimiter::Brace))
                {
                    collect_paths(body.stream(), &[module.as_slice(), &[name]].concat(), paths);
                }
            }
            TokenTree::Ident(first) => {
                let mut path = vec![first.to_string()];
                while skip_colons(&mut tokens) {
                    match tokens.next_if(|next| matches!(next, TokenTree::Ident(_))) {
                        Some(name) => path.push(name.to_string()),
                        None => break,
                    }
                }
                if path.len() > 1 {
                    paths.push((module.clone(), path));
                }
            }
            TokenTree::Group(group) => collect_paths(group.stream(), module, paths),
            _ => {}
        }
    }
}

/// A `use` tree, up to its semicolon, comma or brace.
fn collect_use(
    tokens: &mut Tokens,
    mut path: Vec<String>,
    module: &Module,
    paths: &mut Vec<(Module, Vec<String>)>,
) {
    while let Some(token) = tokens.next_if(|next| !is_punct(next, ',') && !is_punct(next, ';')) {
        match token {
            TokenTree::Ident(word) if word == "as" => drop(tokens.next()),
            TokenTree::Ident(word) => path.push(word.to_string()),
            TokenTree::Group(group) => {
                let mut branches = group.stream().into_iter().peekable();
                while branches.peek().is_some() {
                    collect_use(&mut branches, path.clone(), module, paths);
                    branches.next(); // the comma
                }
                return;
            }
            _ => {} // `::` or `*`
        }
    }
    paths.push((module.clone(), path));
}

/// The file of the module that a path names; `None` for what is of another crate.
fn target<'a>(crates: &'a [Crate], own: &'a Crate, module: &Module, path: &[String]) -> Option<&'a File> {
    let mut names = path.iter();
    let first = path.first()?.as_str();
    let (of, mut base) = match first {
        "crate" => (own, Vec::new()),
        "self" => (own, module.clone()),
        "super" => (own, module[..module.len().checked_sub(1)?].to_vec()),
        _ if own.files.contains_key(&[module.as_slice(), &[first.to_owned()]].concat()) => {
            (own, [module.as_slice(), &[first.to_owned()]].concat())
        }
        _ => (crates.iter().find(|one| one.name == first)?, Vec::new()),
    };
    names.next();
    for name in names {
        match name.as_str() {
            "super" => drop(base.pop()),
            name if of.files.contains_key(&[base.as_slice(), &[name.to_owned()]].concat()) => {
                base.push(name.to_owned());
            }
            _ => break,
        }
    }
    // A module without a file is in the file of its parent.
    while !of.files.contains_key(&base) {
        base.pop()?;
    }
    of.files.get(&base).map(|source| &source.file)
}

fn is_punct(token: &TokenTree, character: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == character)
}

fn delimiter(token: &TokenTree) -> Option<Delimiter> {
    match token {
        TokenTree::Group(group) => Some(group.delimiter()),
        _ => None,
    }
}

/// Whether `::` comes next, which is taken.
fn skip_colons(tokens: &mut Tokens) -> bool {
    let is_path = matches!(tokens.peek(), Some(TokenTree::Punct(punct))
        if punct.as_char() == ':' && punct.spacing() == proc_macro2::Spacing::Joint);
    is_path && {
        tokens.next();
        tokens.next_if(|next| is_punct(next, ':')).is_some()
    }
}
