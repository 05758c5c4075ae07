//! Answers to requests, connections, requests to others, the log and the node around.

use wormholes_host::trial::words::{
    fetch, http, requests, sockets,
    system::{self, Level},
    types,
};

use super::{super::input::Input, Live, words::Words};

/// What one draw gives.
const MAX_RANDOM_BYTES: u64 = 4096;
const ROOM_BYTES: u32 = 64 << 10;

impl Live {
    pub(super) fn call_wires(&mut self, choice: u8, input: &mut Input<'_>) {
        match choice % 16 {
            0 => self.finish(input),
            1 => {
                let (id, percent, text) = (input.number(), input.byte(), input.text());
                let percent = (percent & 1 == 0).then_some(percent);
                let told = requests::Host::progress(self.imports(), id, percent, text);
                if let Err(error) = told.unwrap() {
                    self.refused(&error, percent.is_none_or(|percent| percent <= 100));
                }
            }
            2 => {
                let (id, response) = (input.number(), input.response());
                let status = response.status;
                let done = http::Host::finish(self.imports(), id, response).unwrap();
                if done.is_ok() {
                    assert!((200..=599).contains(&status));
                    self.answers(id, true);
                }
            }
            3..6 => self.connect(input),
            6 => {
                let (id, bytes) = (input.number(), input.number());
                let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
                let _ = sockets::Host::credit(self.imports(), id, bytes).unwrap();
            }
            7 | 8 => self.write(input),
            9 => {
                let id = input.number();
                if sockets::Host::close(self.imports(), id).unwrap().is_ok() {
                    assert_eq!(sockets::Host::room(self.imports(), id).unwrap(), 0);
                }
            }
            10 => {
                let port = u16::try_from(input.number()).unwrap_or(53);
                let (to, data) = (address(input), input.many());
                let is_valid = port == 53 && data.len() <= 1400;
                let sent = sockets::Host::send_to(self.imports(), port, to, data).unwrap();
                assert!(sent.is_err() || is_valid && self.who == 0);
            }
            11 | 12 => self.request(input),
            _ => self.around(choice, input),
        }
    }

    /// Somebody waits for it, and nobody answered it before.
    fn answers(&mut self, id: u64, by_http: bool) {
        assert!(self.open.contains(&(id, by_http)) && !self.is_query);
        assert!(self.answered.insert(id), "{id} is answered twice");
    }

    fn finish(&mut self, input: &mut Input<'_>) {
        let (id, is_done) = (input.number(), input.flag());
        let answer = match is_done {
            true => Ok(input.many()),
            false => Err(input.error()),
        };
        let is_valid = answer.as_ref().is_ok_and(|body| body.len() <= 1 << 20) || !is_done;
        match requests::Host::finish(self.imports(), id, answer).unwrap() {
            Ok(()) => {
                assert!(is_valid);
                self.answers(id, false);
            }
            Err(error) if matches!(error.code, types::ErrorCode::NotFound) => {
                let waits = self.open.contains(&(id, false)) && !self.answered.contains(&id);
                assert!(!waits || self.is_query, "{id} waits");
            }
            Err(error) => self.refused(&error, is_valid),
        }
    }

    fn connect(&mut self, input: &mut Input<'_>) {
        let (is_tls, port) = (input.flag(), input.number());
        let kind = match is_tls {
            true => sockets::Kind::Tls,
            false => sockets::Kind::Tcp,
        };
        let port = u16::try_from(port).unwrap_or(443);
        let host = match input.byte() {
            0..0x80 => "a.example".to_owned(),
            _ => input.text(),
        };
        let way = input.way();
        let way = sockets::Way {
            role: way.role,
            label: way.label,
            isolation: way.isolation,
        };
        if let Ok(id) = sockets::Host::connect(self.imports(), kind, host, port, way).unwrap() {
            assert!(!self.is_query && port == if is_tls { 443 } else { 80 });
            self.began(id);
            assert_eq!(sockets::Host::room(self.imports(), id).unwrap(), ROOM_BYTES);
        }
    }

    fn write(&mut self, input: &mut Input<'_>) {
        let (id, data) = (input.number(), input.many());
        let length = u32::try_from(data.len()).unwrap();
        let room = sockets::Host::room(self.imports(), id).unwrap();
        let is_written = sockets::Host::write(self.imports(), id, data)
            .unwrap()
            .is_ok();
        let after = sockets::Host::room(self.imports(), id).unwrap();
        let taken = match length {
            0 => 0,
            length => length.max(64),
        };
        let taken = if is_written { taken } else { 0 };
        assert_eq!(room.checked_sub(taken), Some(after));
    }

    fn request(&mut self, input: &mut Input<'_>) {
        let method = match input.byte() {
            0..0x80 => "GET".to_owned(),
            _ => input.text(),
        };
        let url = match input.byte() {
            0..0x80 => "https://a.example/".to_owned(),
            0x80..0xc0 => format!("http://{}", input.text()),
            _ => input.text(),
        };
        let way = input.way();
        let way = fetch::Way {
            role: way.role,
            label: way.label,
            isolation: way.isolation,
        };
        let request = fetch::Request {
            method,
            url,
            headers: input.headers(),
            body: input.many(),
        };
        let deadline_ms = input.number();
        if let Ok(id) = fetch::Host::send(self.imports(), request, way, deadline_ms).unwrap() {
            assert!(!self.is_query);
            self.began(id);
        }
    }

    fn around(&mut self, choice: u8, input: &mut Input<'_>) {
        match choice % 8 {
            5 => {
                let (level, text) = (input.byte(), input.text());
                let level = match level % 5 {
                    0 => Level::Trace,
                    1 => Level::Debug,
                    2 => Level::Info,
                    3 => Level::Warn,
                    _ => Level::Error,
                };
                system::Host::log(self.imports(), level, text).unwrap();
            }
            6 => {
                let length = input.number();
                let most = length.min(MAX_RANDOM_BYTES) as usize;
                assert_eq!(self.running.random(length).unwrap().len(), most);
                let length = u32::try_from(length).unwrap_or(u32::MAX);
                let bytes = system::Host::random(self.imports(), length).unwrap();
                assert_eq!(bytes.len(), most);
            }
            _ => {
                self.running.say(&input.many());
                let name = input.name();
                assert_eq!(system::Host::config(self.imports(), name).unwrap(), None);
                assert_eq!(system::Host::instance(self.imports()).unwrap(), "tried");
                assert_eq!(system::Host::node_id(self.imports()).unwrap().len(), 32);
            }
        }
    }
}

fn address(input: &mut Input<'_>) -> String {
    match input.byte() {
        0..0x80 => "203.0.113.1:53".to_owned(),
        0x80..0xc0 => "[2001:db8::1]:53".to_owned(),
        _ => input.text(),
    }
}
