//! A scanner of Rust source that knows just enough: it tells code from comments and literals,
//! finds the ends of blocks, and lists functions, test-only parts and paths. It does not parse.

use std::ops::Range;

/// A source with code and comments pulled apart. Both texts have the length and the lines of the
/// original; what is not theirs is blank. Literals are blank in both.
pub struct Source {
    /// What the compiler reads, without the content of literals.
    pub code: String,
    /// What people read.
    pub comments: String,
}

impl Source {
    /// Scans `text`. Any text gives a result; for text that does not compile it means little.
    pub fn new(text: &str) -> Self {
        let mut scanner =
            Scanner { text: text.as_bytes(), at: 0, code: Vec::new(), comments: Vec::new() };
        while scanner.at < scanner.text.len() {
            scanner.step();
        }
        let utf8 = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { code: utf8(scanner.code), comments: utf8(scanner.comments) }
    }

    /// The byte ranges of `code` that exist in tests only: items behind `#[cfg(test)]`.
    pub fn test_parts(&self) -> Vec<Range<usize>> {
        let code = &self.code;
        if code.contains("#![cfg(test)]") {
            return std::iter::once(0..code.len()).collect();
        }
        let mut parts: Vec<Range<usize>> = Vec::new();
        for marker in ["#[cfg(test)]", "#[cfg(all(test,"] {
            for (start, _) in code.match_indices(marker) {
                if !parts.iter().any(|p| p.contains(&start)) {
                    parts.push(start..end_of_item(code, start));
                }
            }
        }
        parts
    }

    /// The code without its test-only parts, which are blank.
    pub fn product_code(&self) -> String {
        let mut bytes = self.code.clone().into_bytes();
        for part in self.test_parts() {
            bytes[part].iter_mut().filter(|b| **b != b'\n').for_each(|b| *b = b' ');
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// What a piece of text is.
#[derive(Clone, Copy, PartialEq)]
enum Piece {
    Code,
    Comment,
    Literal,
}

struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
    code: Vec<u8>,
    comments: Vec<u8>,
}

impl Scanner<'_> {
    fn step(&mut self) {
        let rest = &self.text[self.at..];
        if rest.starts_with(b"//") {
            let len = rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len());
            self.take(len, Piece::Comment);
        } else if rest.starts_with(b"/*") {
            self.take(block_comment(rest), Piece::Comment);
        } else if let Some(len) = self.raw_string() {
            self.take(len, Piece::Literal);
        } else if rest[0] == b'"' {
            self.take(quoted(rest, b'"'), Piece::Literal);
        } else if rest[0] == b'\'' && is_char_literal(rest) {
            self.take(quoted(rest, b'\''), Piece::Literal);
        } else {
            self.take(1, Piece::Code);
        }
    }

    /// Moves on by `len` bytes, which are `piece`.
    fn take(&mut self, len: usize, piece: Piece) {
        for &byte in &self.text[self.at..self.at + len] {
            let blank = if byte == b'\n' { b'\n' } else { b' ' };
            self.code.push(if piece == Piece::Code { byte } else { blank });
            self.comments.push(if piece == Piece::Comment { byte } else { blank });
        }
        self.at += len;
    }

    /// Length of the raw string that begins here.
    fn raw_string(&self) -> Option<usize> {
        if self.at > 0 && is_word(self.text[self.at - 1]) {
            return None;
        }
        let rest = &self.text[self.at..];
        let prefix = if matches!(rest[0], b'b' | b'c') { 2 } else { 1 };
        if rest.get(prefix - 1) != Some(&b'r') {
            return None;
        }
        let hashes = rest[prefix..].iter().take_while(|&&b| b == b'#').count();
        let open = prefix + hashes;
        if rest.get(open) != Some(&b'"') {
            return None;
        }
        let mut end = vec![b'"'];
        end.resize(1 + hashes, b'#');
        let body = &rest[open + 1..];
        let close = body.windows(end.len()).position(|w| w == end);
        Some(close.map_or(rest.len(), |c| open + 1 + c + end.len()))
    }
}

/// Length of the block comment that `text` begins with; they nest.
fn block_comment(text: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        if text[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

/// Length of the literal that `text` begins with, which ends at the next `quote` that no
/// backslash precedes.
fn quoted(text: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < text.len() {
        match text[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// Tells `'a'` from the lifetime `'a`.
fn is_char_literal(text: &[u8]) -> bool {
    match text.get(1) {
        None => false,
        Some(b'\\') => true,
        Some(&first) => {
            let len = match first {
                0..0x80 => 1,
                0x80..0xE0 => 2,
                0xE0..0xF0 => 3,
                _ => 4,
            };
            text.get(1 + len) == Some(&b'\'')
        }
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// The line (from 1) of byte `at`.
pub fn line_of(text: &str, at: usize) -> usize {
    1 + text[..at].matches('\n').count()
}

/// Where `word` stands in `code` as a whole word.
pub fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let bytes = code.as_bytes();
    code.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        let before = at.checked_sub(1).is_none_or(|i| !is_word(bytes[i]));
        before && bytes.get(at + word.len()).is_none_or(|&b| !is_word(b))
    })
}

/// Behind the bracket that closes the one at `open`.
fn behind_bracket(code: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' | b'(' | b'[' => depth += 1,
            b'}' | b')' | b']' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
    }
    code.len()
}

/// Where the item ends whose attributes begin at `start`: behind its block, its semicolon or, for
/// a field or variant, its comma.
fn end_of_item(code: &str, start: usize) -> usize {
    const ITEMS: &[&str] = &[
        "pub",
        "fn",
        "mod",
        "impl",
        "use",
        "struct",
        "enum",
        "trait",
        "const",
        "static",
        "type",
        "unsafe",
        "async",
        "extern",
        "macro_rules",
    ];
    let bytes = code.as_bytes();
    let mut at = start;
    while bytes.get(at) == Some(&b'#') {
        at = behind_bracket(code, at + 1);
        at += bytes[at..].iter().take_while(|b| b.is_ascii_whitespace()).count();
    }
    let len = bytes[at..].iter().take_while(|&&b| is_word(b)).count();
    let item = ITEMS.contains(&&code[at..at + len]);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'{' => return behind_bracket(code, at),
            b';' => return at + 1,
            b',' if !item => return at + 1,
            b'}' => return at,
            b'(' | b'[' => at = behind_bracket(code, at),
            _ => at += 1,
        }
    }
    code.len()
}

/// A function with a body.
#[derive(Debug, PartialEq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Line of its `fn`, from 1.
    pub line: usize,
    /// Lines between its braces that have code on them; clippy's `too_many_lines` counts so too.
    pub lines: usize,
}

/// All functions of `code`, also nested ones.
pub fn functions(code: &str) -> Vec<Function> {
    let bytes = code.as_bytes();
    let mut found = Vec::new();
    for start in words(code, "fn") {
        let after = &code[start + 2..];
        let name: String = after
            .trim_start()
            .bytes()
            .take_while(|&b| is_word(b) || b == b'#')
            .map(char::from)
            .collect();
        if name.is_empty() {
            continue; // a function pointer type
        }
        let mut at = start;
        while let Some(&byte) = bytes.get(at) {
            match byte {
                b'{' => {
                    let body = &code[at + 1..behind_bracket(code, at)];
                    let body = body.strip_suffix('}').unwrap_or(body);
                    let lines = body.lines().filter(|l| !l.trim().is_empty()).count();
                    found.push(Function { name, line: line_of(code, start), lines });
                    break;
                }
                b';' => break,
                b'(' | b'[' => at = behind_bracket(code, at),
                _ => at += 1,
            }
        }
    }
    found
}

/// All paths that `code` names, with their lines; `a::{b, c::d}` gives `a::b` and `a::c::d`.
pub fn paths(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut rest = Tokens { code, at: 0, line: 1 };
    while let Some(token) = rest.next() {
        if let Token::Word(word) = token {
            rest.path(word.to_owned(), &mut found);
        }
    }
    found
}

#[derive(Clone, Copy, PartialEq)]
enum Token<'a> {
    Word(&'a str),
    Colons,
    Other(u8),
}

#[derive(Clone)]
struct Tokens<'a> {
    code: &'a str,
    at: usize,
    line: usize,
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        let bytes = self.code.as_bytes();
        while let Some(b) = bytes.get(self.at).filter(|b| b.is_ascii_whitespace()) {
            self.line += usize::from(*b == b'\n');
            self.at += 1;
        }
        let start = self.at;
        let len = bytes[start..].iter().take_while(|&&b| is_word(b)).count();
        if len > 0 {
            self.at += len;
            Some(Token::Word(&self.code[start..start + len]))
        } else if bytes[start..].starts_with(b"::") {
            self.at += 2;
            Some(Token::Colons)
        } else {
            self.at += 1;
            bytes.get(start).map(|&b| Token::Other(b))
        }
    }
}

impl Tokens<'_> {
    /// Reads on behind `prefix` and adds every path that begins with it.
    fn path(&mut self, mut prefix: String, found: &mut Vec<(usize, String)>) {
        loop {
            let line = self.line;
            let mut ahead = self.clone();
            if ahead.next() != Some(Token::Colons) {
                return found.push((line, prefix));
            }
            match ahead.next() {
                Some(Token::Word(word)) => {
                    prefix = format!("{prefix}::{word}");
                    *self = ahead;
                }
                Some(Token::Other(b'{')) => {
                    *self = ahead;
                    return self.group(&prefix, found);
                }
                _ => return found.push((line, prefix)),
            }
        }
    }

    /// Reads the rest of `prefix::{`.
    fn group(&mut self, prefix: &str, found: &mut Vec<(usize, String)>) {
        while let Some(token) = self.next() {
            match token {
                Token::Word("as") => {
                    self.next();
                }
                Token::Word(word) => self.path(format!("{prefix}::{word}"), found),
                Token::Other(b'}') => return,
                Token::Other(b'*') => found.push((self.line, format!("{prefix}::*"))),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> String {
        Source::new(text).code
    }

    #[test]
    fn comments_are_not_code() {
        let source = Source::new("a // b {\nc /* d /* e */ f } */ g");
        assert_eq!(source.code, "a       \nc                     g");
        assert_eq!(source.comments, "  // b {\n  /* d /* e */ f } */  ");
    }

    #[test]
    fn literals_are_blank() {
        for (text, rest) in [
            (r#"f("} \" // {", b"}")x"#, "f(,b)x"),
            ("f(r##\"}\"# \\\"##)x", "f()x"),
            ("f(br\"{\", cr#\"{\"#)x", "f(,)x"),
            (r"f('{', '\'', b'\\', 'é', '\u{7b}')x", "f(,,b,,)x"),
            ("\"a\nb\"c", "c"),
        ] {
            let code = code(text);
            assert_eq!(code.split_whitespace().collect::<String>(), rest);
            assert_eq!(code.len(), text.len(), "{text}");
            assert_eq!(code.lines().count(), text.lines().count(), "{text}");
        }
    }

    #[test]
    fn lifetimes_and_raw_identifiers_are_code() {
        for text in
            ["fn f<'a>(x: &'a str, y: &'_ u8) {}", "let r#type = 1;", "loop { break 'outer }"]
        {
            assert_eq!(code(text), text);
        }
    }

    #[test]
    fn broken_text_ends_the_scan_in_peace() {
        for text in ["\"abc", "r#\"abc", "/* abc", "'\\", "'", "b", "br", "fn f( {", "#[cfg(test)]"]
        {
            let source = Source::new(text);
            assert_eq!(source.code.len(), text.len(), "{text}");
            functions(&source.code);
            paths(&source.code);
            source.test_parts();
        }
    }

    #[test]
    fn functions_end_at_their_brace() {
        let text = "fn a() -> [u8; { 2 }] {\n  // }\n\n  if x { \"}\" }\n}\ntrait T { fn b(&self); }\n\
                    type F = fn(u8);\nimpl X {\n  const fn c()\n  where A: B,\n  {\n  }\n}";
        let found = functions(&code(text));
        let expected = [("a", 1, 1), ("c", 9, 0)].map(|(name, line, lines)| Function {
            name: name.to_owned(),
            line,
            lines,
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn test_parts_end_where_their_item_ends() {
        let text = "#[cfg(test)]\nmod testkit;\nkept\n#[cfg(test)]\n#[rustfmt::skip]\nmod tests {\n\
                    fn f<A, B>() { \"}\" }\n}\nstruct S { #[cfg(test)] a: u8, kept: u8 }\n\
                    #[cfg(test)]\nfn g<A, B>() { gone }\n";
        let kept = Source::new(text).product_code();
        let kept: Vec<&str> = kept.split_whitespace().collect();
        assert_eq!(kept, ["kept", "struct", "S", "{", "kept:", "u8", "}"]);
    }

    #[test]
    fn groups_of_paths_are_spelt_out() {
        let text = "use a::{b, c::{d as e, self}, *};\nlet x = f::<u8>(::g::h);";
        let found = paths(text);
        let expected = [
            (1, "use"),
            (1, "a::b"),
            (1, "a::c::d"),
            (1, "a::c::self"),
            (1, "a::*"),
            (2, "let"),
            (2, "x"),
            (2, "f"),
            (2, "u8"),
            (2, "g::h"),
        ]
        .map(|(line, path)| (line, path.to_owned()));
        assert_eq!(found, expected);
    }

    #[test]
    fn words_are_whole() {
        assert_eq!(words("unsafe_code unsafe unsafety", "unsafe").collect::<Vec<_>>(), [12]);
    }
}
