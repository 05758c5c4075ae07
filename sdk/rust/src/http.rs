//! HTTP: requests that a plugin answers, and requests that it makes.

use std::time::Duration;

use serde::Serialize;

use crate::{Context, Error, Result, Way, host, json, way::travels};

/// Somebody asks by HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpRequest {
    /// `GET`, as it came.
    pub method: String,
    /// Where, not decoded. A first part `/~NAME` is taken away: the event is that user's.
    pub path: String,
    /// What stands behind `?`.
    pub query: Option<String>,
    /// Names in small letters, and values; without those of the connection.
    pub headers: Vec<(String, Vec<u8>)>,
    /// All of it.
    pub body: Vec<u8>,
    /// The address that it came from: a proxy's, where one stands before the node.
    pub remote: String,
}

/// An answer by HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpResponse {
    /// 200 to 599.
    pub status: u16,
    /// Names and values, at most 64 of 16 KiB together; those of the connection are the node's.
    pub headers: Vec<(String, Vec<u8>)>,
    /// At most 1 MiB.
    pub body: Vec<u8>,
}

/// What a handler returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpReply {
    /// The answer.
    Done(HttpResponse),
    /// [`Context::respond`] will answer, in this event or a later one.
    Later,
}

/// A request to a server, to be [sent](Self::send).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// `GET` and the like.
    pub method: String,
    /// `http://` or `https://`, at most 4 KiB.
    pub url: String,
    /// Names and values; `host` is that of the URL.
    pub headers: Vec<(String, Vec<u8>)>,
    /// At most 1 MiB.
    pub body: Vec<u8>,
    /// How it travels. Nobody sees the sender in it.
    pub way: Way,
}

impl HttpRequest {
    /// A header's first value, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }
}

impl HttpResponse {
    /// An answer of this media type.
    pub fn new(status: u16, media_type: &str, body: impl Into<Vec<u8>>) -> Self {
        let empty = Self {
            status,
            headers: Vec::new(),
            body: body.into(),
        };
        empty.with_header("content-type", media_type)
    }

    /// 200, with text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::new(200, "text/plain; charset=utf-8", text.into())
    }

    /// 200, with a page. What it is made of must be [escaped](escape).
    pub fn html(page: impl Into<String>) -> Self {
        Self::new(200, "text/html; charset=utf-8", page.into())
    }

    /// 200, with a value.
    ///
    /// # Errors
    /// [`Failed`](crate::ErrorCode::Failed): JSON cannot say it.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self> {
        Ok(Self::new(200, "application/json", json(value)?))
    }

    /// 303: the answer to a form, so that a reload does not send it again.
    pub fn see_other(path: &str) -> Self {
        Self {
            status: 303,
            headers: Vec::new(),
            body: Vec::new(),
        }
        .with_header("location", path)
    }

    /// The same with another status.
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// The same with one more header.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        let header = (name.to_ascii_lowercase(), value.as_bytes().to_vec());
        self.headers.push(header);
        self
    }

    /// A header's first value, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }
}

impl From<HttpResponse> for HttpReply {
    fn from(response: HttpResponse) -> Self {
        Self::Done(response)
    }
}

impl Fetch {
    /// A request without a body.
    pub fn new(method: &str, url: &str) -> Self {
        Self {
            method: method.to_owned(),
            url: url.to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
            way: Way::default(),
        }
    }

    /// `GET`.
    pub fn get(url: &str) -> Self {
        Self::new("GET", url)
    }

    /// `POST`, with a body of this media type.
    pub fn post(url: &str, media_type: &str, body: impl Into<Vec<u8>>) -> Self {
        let request = Self {
            body: body.into(),
            ..Self::new("POST", url)
        };
        request.header("content-type", media_type)
    }

    /// One more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let header = (name.to_ascii_lowercase(), value.as_bytes().to_vec());
        self.headers.push(header);
        self
    }

    /// Sends it when the event is real, at most once; the id of the one
    /// [`Plugin::fetched`](crate::Plugin::fetched). Longer than 10 minutes nobody waits.
    ///
    /// # Errors
    /// [`Quota`](crate::ErrorCode::Quota): too many questions are open;
    /// [`Invalid`](crate::ErrorCode::Invalid): it is no request.
    pub fn send(self, cx: &mut Context, patience: Duration) -> Result<u64> {
        let deadline = cx.later(patience);
        host::with(|host| host.fetch(self, deadline))
    }
}

travels!(Fetch, "It shares no circuit with flows of another key.");

impl Context {
    /// Answers a request that was answered [`Later`](HttpReply::Later).
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorCode::NotFound): nobody waits for it any more;
    /// [`Invalid`](crate::ErrorCode::Invalid): it is no answer.
    pub fn respond(&mut self, request: u64, response: HttpResponse) -> Result<()> {
        host::with(|host| host.respond(request, response))
    }
}

/// Text for a page, or for an attribute within quotation marks: none of it is markup.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            plain => escaped.push(plain),
        }
    }
    escaped
}

/// The fields of a form that a browser sent (`application/x-www-form-urlencoded`), or of a query.
///
/// # Errors
/// [`Invalid`](crate::ErrorCode::Invalid): it is not text.
pub fn form(body: &[u8]) -> Result<Vec<(String, String)>> {
    let fields = body
        .split(|byte| *byte == b'&')
        .filter(|field| !field.is_empty());
    let fields = fields.map(|field| {
        let mut parts = field.splitn(2, |byte| *byte == b'=');
        let mut part = || decoded(parts.next().unwrap_or_default());
        Ok((part()?, part()?))
    });
    fields.collect()
}

fn decoded(part: &[u8]) -> Result<String> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        let number = match (byte, after) {
            (b'%', [high, low, ..]) => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                digit(*high).zip(digit(*low))
            }
            _ => None,
        };
        match number {
            Some((high, low)) => {
                rest = after.get(2..).unwrap_or_default();
                bytes.push(u8::try_from(high * 16 + low).unwrap_or_default());
            }
            None if *byte == b'+' => bytes.push(b' '),
            None => bytes.push(*byte),
        }
    }
    String::from_utf8(bytes).map_err(|_| Error::invalid("the form is not text"))
}

fn header<'a>(headers: &'a [(String, Vec<u8>)], name: &str) -> Option<&'a str> {
    let mut headers = headers.iter();
    let (_, value) = headers.find(|(known, _)| known.eq_ignore_ascii_case(name))?;
    std::str::from_utf8(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_read_as_browsers_write_it() {
        let fields = form(b"name=Ann+Lee&text=a%26b%3D%C3%BC&empty=&alone&broken=%4").unwrap();
        let expected = [
            ("name", "Ann Lee"),
            ("text", "a&b=\u{fc}"),
            ("empty", ""),
            ("alone", ""),
            ("broken", "%4"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(fields, expected);
        assert!(form(b"a=%ff").is_err());
        assert!(form(b"").unwrap().is_empty());
    }

    #[test]
    fn escaped_text_is_no_markup() {
        assert_eq!(escape("<a href=\"'&"), "&lt;a href=&quot;&#39;&amp;");
    }
}
