//! One description of a message, two ways to write it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;

use super::{Data, Written};
use crate::protocol::close::Close;
use crate::protocol::protobuf::{begin_message, end_message, put_bytes, put_number};

/// Key in JSON, number in Protobuf.
pub(super) type Field = (&'static str, u32);

/// Writes the fields of one message. What is zero or empty is left out.
pub(super) trait Writer: Sized {
    fn text(&mut self, field: Field, value: &str);
    fn number(&mut self, field: Field, value: u64);
    fn flag(&mut self, field: Field, value: bool);
    /// As [`Writer::text`], and there even if empty where absence is not the same.
    fn text_always(&mut self, field: Field, value: &str);
    fn number_always(&mut self, field: Field, value: u64);
    /// The application's own value: in JSON its text.
    fn raw(&mut self, field: Field, value: &[u8]) -> Written;
    /// A publication's payload.
    fn data(&mut self, field: Field, data: Data<'_>, json: bool) -> Written;
    /// From the text of a JSON object whose values are text.
    fn tags(&mut self, field: Field, tags: &[u8]);
    /// A message within, there even if it is empty.
    fn message(&mut self, field: Field, write: impl FnOnce(&mut Self) -> Written) -> Written;
    fn list<T>(
        &mut self,
        field: Field,
        items: &[T],
        write: impl Fn(&mut Self, &T) -> Written,
    ) -> Written;
    /// Messages by key.
    fn map<'a, T>(
        &mut self,
        field: Field,
        entries: impl Iterator<Item = (&'a str, T)>,
        write: impl Fn(&mut Self, T) -> Written,
    ) -> Written;
}

/// Writes a JSON object member by member. There are no line feeds in it: several dialects put one
/// after each message.
pub(super) struct Json<'a> {
    out: &'a mut Vec<u8>,
    is_empty: bool,
}

impl<'a> Json<'a> {
    /// Append an object with the members that `write` writes.
    pub(super) fn object(
        out: &'a mut Vec<u8>,
        write: impl FnOnce(&mut Self) -> Written,
    ) -> Written {
        Self {
            out,
            is_empty: true,
        }
        .within(write)
    }

    fn within(&mut self, write: impl FnOnce(&mut Self) -> Written) -> Written {
        self.out.push(b'{');
        self.is_empty = true;
        let written = write(self);
        self.is_empty = false;
        self.out.push(b'}');
        written
    }

    /// Write a key; its value follows.
    fn key(&mut self, key: &str) -> &mut Vec<u8> {
        if !self.is_empty {
            self.out.push(b',');
        }
        self.is_empty = false;
        put_json(self.out, key);
        self.out.push(b':');
        self.out
    }
}

fn put_json<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value).expect("text and numbers always have a JSON form");
}

/// JSON text in one line: between its values, and nowhere else, it may hold line breaks.
fn put_line(out: &mut Vec<u8>, text: &[u8]) {
    if text.contains(&b'\n') || text.contains(&b'\r') {
        out.extend(text.iter().filter(|&&byte| byte != b'\n' && byte != b'\r'));
    } else {
        out.extend_from_slice(text);
    }
}

impl Writer for Json<'_> {
    fn text(&mut self, field: Field, value: &str) {
        if !value.is_empty() {
            self.text_always(field, value);
        }
    }

    fn number(&mut self, field: Field, value: u64) {
        if value != 0 {
            self.number_always(field, value);
        }
    }

    fn flag(&mut self, field: Field, value: bool) {
        if value {
            self.key(field.0).extend_from_slice(b"true");
        }
    }

    fn text_always(&mut self, field: Field, value: &str) {
        put_json(self.key(field.0), value);
    }

    fn number_always(&mut self, field: Field, value: u64) {
        put_json(self.key(field.0), &value);
    }

    fn raw(&mut self, field: Field, value: &[u8]) -> Written {
        if !value.is_empty() {
            put_line(self.key(field.0), value);
        }
        Ok(())
    }

    fn data(&mut self, field: Field, data: Data<'_>, json: bool) -> Written {
        if !json {
            return Err(Close::InappropriateProtocol);
        }
        match data {
            Data::Plain(text) => self.raw(field, text),
            Data::Whole(bytes) | Data::Delta(bytes) => {
                let text = std::str::from_utf8(bytes).or(Err(Close::InappropriateProtocol))?;
                self.text_always(field, text);
                Ok(())
            }
        }
    }

    fn tags(&mut self, field: Field, tags: &[u8]) {
        if !tags.is_empty() {
            put_line(self.key(field.0), tags);
        }
    }

    fn message(&mut self, field: Field, write: impl FnOnce(&mut Self) -> Written) -> Written {
        self.key(field.0);
        self.within(write)
    }

    fn list<T>(
        &mut self,
        field: Field,
        items: &[T],
        write: impl Fn(&mut Self, &T) -> Written,
    ) -> Written {
        self.key(field.0).push(b'[');
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.out.push(b',');
            }
            self.within(|w| write(w, item))?;
        }
        self.out.push(b']');
        Ok(())
    }

    fn map<'a, T>(
        &mut self,
        field: Field,
        entries: impl Iterator<Item = (&'a str, T)>,
        write: impl Fn(&mut Self, T) -> Written,
    ) -> Written {
        self.message(field, |w| {
            for (key, value) in entries {
                w.key(key);
                w.within(|w| write(w, value))?;
            }
            Ok(())
        })
    }
}

pub(super) struct Protobuf<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Protobuf<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out }
    }
}

impl Writer for Protobuf<'_> {
    fn text(&mut self, field: Field, value: &str) {
        if !value.is_empty() {
            put_bytes(self.out, field.1, value.as_bytes());
        }
    }

    fn number(&mut self, field: Field, value: u64) {
        if value != 0 {
            put_number(self.out, field.1, value);
        }
    }

    fn flag(&mut self, field: Field, value: bool) {
        self.number(field, value.into());
    }

    // What is left out is zero to every reader of Protobuf.
    fn text_always(&mut self, field: Field, value: &str) {
        self.text(field, value);
    }

    fn number_always(&mut self, field: Field, value: u64) {
        self.number(field, value);
    }

    fn raw(&mut self, field: Field, value: &[u8]) -> Written {
        if !value.is_empty() {
            put_bytes(self.out, field.1, value);
        }
        Ok(())
    }

    fn data(&mut self, field: Field, data: Data<'_>, _: bool) -> Written {
        let (Data::Plain(bytes) | Data::Whole(bytes) | Data::Delta(bytes)) = data;
        self.raw(field, bytes)
    }

    fn tags(&mut self, field: Field, tags: &[u8]) {
        if tags.is_empty() {
            return;
        }
        // Values that are not text, which nobody should have put there, are written as they stand.
        let tags: BTreeMap<String, &RawValue> = serde_json::from_slice(tags).unwrap_or_default();
        for (key, value) in tags {
            let text = serde_json::from_str(value.get()).unwrap_or_else(|_| value.get().to_owned());
            let start = begin_message(self.out, field.1);
            put_bytes(self.out, 1, key.as_bytes());
            put_bytes(self.out, 2, text.as_bytes());
            end_message(self.out, start);
        }
    }

    fn message(&mut self, field: Field, write: impl FnOnce(&mut Self) -> Written) -> Written {
        let start = begin_message(self.out, field.1);
        write(self)?;
        end_message(self.out, start);
        Ok(())
    }

    fn list<T>(
        &mut self,
        field: Field,
        items: &[T],
        write: impl Fn(&mut Self, &T) -> Written,
    ) -> Written {
        for item in items {
            self.message(field, |w| write(w, item))?;
        }
        Ok(())
    }

    fn map<'a, T>(
        &mut self,
        field: Field,
        entries: impl Iterator<Item = (&'a str, T)>,
        write: impl Fn(&mut Self, T) -> Written,
    ) -> Written {
        for (key, value) in entries {
            let start = begin_message(self.out, field.1);
            put_bytes(self.out, 1, key.as_bytes());
            self.message(("value", 2), |w| write(w, value))?;
            end_message(self.out, start);
        }
        Ok(())
    }
}
