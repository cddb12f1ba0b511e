//! Names from a guest, for people and for programs. A name may hold any byte but a slash and a zero.

use serde_json::{Map, Value, json};

/// A path as one line: what is no text, controls a terminal, changes the direction of writing, and the backslash itself
/// are escaped.
pub(crate) fn shown(path: &[u8]) -> String {
    let mut text = String::new();
    for chunk in path.utf8_chunks() {
        for character in chunk.valid().chars() {
            let hidden = matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
                | '\u{feff}' | '\u{61c}');
            if character == '\\' || character.is_control() || hidden {
                text.extend(character.escape_default());
            } else {
                text.push(character);
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// Puts a path into `fields` under `key`: as it is when it is text; else escaped, with its bytes in hexadecimal beside.
pub(crate) fn to_json(fields: &mut Map<String, Value>, key: &str, path: &[u8]) {
    match std::str::from_utf8(path) {
        Ok(text) => fields.insert(key.to_owned(), json!(text)),
        Err(_) => {
            let hex: String = path.iter().map(|byte| format!("{byte:02x}")).collect();
            fields.insert(format!("{key}_hex"), json!(hex));
            fields.insert(key.to_owned(), json!(shown(path)))
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_a_guest_reaches_a_terminal() {
        assert_eq!(shown("/home/Ünïcode/a b".as_bytes()), "/home/Ünïcode/a b");
        assert_eq!(shown(b"/a\nb\x1b[2J\x7f"), "/a\\nb\\u{1b}[2J\\u{7f}");
        assert_eq!(shown("/a\u{202e}b\u{200b}".as_bytes()), "/a\\u{202e}b\\u{200b}");
        assert_eq!(shown(b"/\xff\\x"), "/\\xff\\\\x");
        let mut fields = Map::new();
        to_json(&mut fields, "path", b"/a\nb");
        to_json(&mut fields, "from_path", b"/\xff");
        let expected = json!({ "path": "/a\nb", "from_path": "/\\xff", "from_path_hex": "2fff" });
        assert_eq!(Value::Object(fields), expected);
    }
}
