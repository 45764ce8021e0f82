//! The `guest.*` parameters of the kernel command line.

use crate::say;

/// README.md says what each is for.
#[derive(Default)]
pub struct Parameters {
    pub ip: Option<String>,
    pub mtu: Option<u32>,
    pub disk: Option<String>,
    pub run: Option<String>,
    pub then: Option<String>,
    pub hostname: Option<String>,
    pub shell: Option<String>,
    pub off: Option<String>,
}

/// Splits like the kernel does: white space separates, double quotes protect it.
fn split_command_line(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            c if c.is_whitespace() && !quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// `%20` and the like; a `%` without two hexadecimal digits stands for itself.
fn unescape(s: &str) -> String {
    let bytes = s.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let code = (bytes[i] == b'%')
            .then(|| s.get(i + 1..i + 3))
            .flatten()
            .filter(|h| h.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|h| u8::from_str_radix(h, 16).ok());
        out.push(code.unwrap_or(bytes[i]));
        i += if code.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl Parameters {
    pub fn parse(line: &str) -> Self {
        let mut p = Self::default();
        for word in split_command_line(line) {
            let Some((key, value)) =
                word.strip_prefix("guest.").and_then(|rest| rest.split_once('='))
            else {
                continue;
            };
            let value = unescape(value);
            match key {
                "ip" => p.ip = Some(value),
                "mtu" => p.mtu = value.parse().ok(),
                "disk" => p.disk = Some(value),
                "run" => p.run = Some(value),
                "then" => p.then = Some(value),
                "hostname" => p.hostname = Some(value),
                "shell" => p.shell = Some(value),
                "off" => p.off = Some(value),
                other => say(&format!("GUEST-WARN unknown parameter guest.{other}")),
            }
        }
        p
    }
}
