//! A plugin for tests: it answers by HTTP, asks by HTTP, keeps connections, and writes down what it hears.

use std::{net::SocketAddr, time::Duration};

use serde_json::{Value, json};
use wormholes_plugin::{
    Caller, Closing, Connect, Context, Error, Fetch, HttpReply, HttpRequest, HttpResponse,
    InMemory, Map, Plugin, Principal, Reply, Request, Result, Socket, escape, form,
    json as encoded, plugin,
};

/// What was posted, by the event that brought it.
const NOTES: Map<u64, String> = Map::new("notes");
/// What it was told, by the event.
const HEARD: Map<u64, String> = Map::new("heard");
/// Requests by HTTP that wait.
const WAITING: Map<u64, (), InMemory> = Map::scratch("waiting");
/// Requests of the command line that wait for an answer by HTTP, by that question.
const ASKED: Map<u64, u64, InMemory> = Map::scratch("asked");

/// The longest answer.
const MAX_BODY_BYTES: usize = 1 << 20;
/// What a line of its log shows of a long text.
const SHOWN_BYTES: usize = 60;
/// What it writes at once where it pours.
const POURED_BYTES: usize = 16 << 10;

/// The plugin.
#[derive(Debug, Default)]
pub struct Porter;

impl Plugin for Porter {
    fn request(&mut self, cx: &mut Context, request: Request) -> Result<Reply> {
        let socket = || request.argument("connection").map(Socket);
        match request.name.as_str() {
            "fetch" => {
                let id = fetch(cx, &request)?;
                ASKED.set(&id, &request.id)?;
                Ok(Reply::Later)
            }
            "begin" => {
                let id = fetch(cx, &request)?;
                heard(cx, &format!("asked {id}"))?;
                Reply::done(&id)
            }
            "connect" => connect(cx, &request),
            "say" => {
                let text: String = request.argument("text")?;
                socket()?.write(cx, text.as_bytes())?;
                Reply::done("said")
            }
            "pour" => {
                let (socket, mut poured) = (socket()?, 0);
                let ended = loop {
                    match socket.write(cx, &vec![b'x'; POURED_BYTES]) {
                        Ok(()) => poured += POURED_BYTES,
                        Err(error) => break error.message,
                    }
                };
                Reply::done(&json!([poured, socket.room(cx), ended]))
            }
            "credit" => {
                socket()?.credit(cx, request.argument("bytes")?)?;
                Reply::done("given")
            }
            "cast" => {
                let (to, text): (SocketAddr, String) =
                    (request.argument("to")?, request.argument("text")?);
                cx.send_to(request.argument("port")?, to, text.as_bytes())?;
                Reply::done("cast")
            }
            "close" => {
                socket()?.close(cx)?;
                Reply::done("closed")
            }
            name => Err(Error::not_found(format!("there is no command `{name}`"))),
        }
    }

    fn query(&self, _: &Context, _: &Caller, _: &str, _: &[u8]) -> Result<Vec<u8>> {
        let lines = HEARD.page(None, 1000)?.into_iter();
        encoded(&lines.map(|(_, line)| line).collect::<Vec<_>>())
    }

    fn http(
        &mut self,
        cx: &mut Context,
        id: u64,
        request: HttpRequest,
        _: u64,
    ) -> Result<HttpReply> {
        let place = request.path.rsplit('/').next().unwrap_or_default();
        let response = match (request.method.as_str(), place) {
            ("POST", "notes") => {
                let text = String::from_utf8_lossy(&request.body).into_owned();
                NOTES.set(&cx.event(), &text)?;
                HttpResponse::text("kept\n").with_status(201)
            }
            ("POST", "form") => {
                for (_, value) in form(&request.body)? {
                    NOTES.set(&cx.event(), &value)?;
                }
                HttpResponse::see_other("/porter/notes")
            }
            (_, "echo") => HttpResponse::json(&echo(cx, &request))?,
            (_, "later") => {
                WAITING.set(&id, &())?;
                heard(cx, "waits")?;
                return Ok(HttpReply::Later);
            }
            ("POST", "finish") => {
                let body = String::from_utf8_lossy(&request.body).into_owned();
                for (waiting, ()) in WAITING.page(None, 100)? {
                    WAITING.remove(&waiting)?;
                    cx.respond(waiting, HttpResponse::text(body.clone()))?;
                }
                HttpResponse::text("finished\n")
            }
            (_, "no") => return Err(Error::denied("not for you")),
            (_, "big") => HttpResponse::text("x".repeat(MAX_BODY_BYTES)),
            (_, "bad") => HttpResponse::text("").with_header("content-length", "7"),
            (_, "break") => broken(),
            _ => return Err(Error::not_found("there is no such page")),
        };
        Ok(response.into())
    }

    fn http_canceled(&mut self, cx: &mut Context, id: u64) -> Result<()> {
        WAITING.remove(&id)?;
        heard(cx, "left")
    }

    fn http_query(&self, _: &Context, request: &HttpRequest) -> Result<HttpResponse> {
        if request.path.ends_with("/sneak") {
            NOTES.set(&0, &"sneaked".to_owned())?;
        }
        let notes = NOTES.page(None, 1000)?.into_iter();
        let lines = notes.map(|(_, note)| format!("<li>{}</li>", escape(&note)));
        let page = format!("<ul>{}</ul>\n", lines.collect::<String>());
        Ok(HttpResponse::html(page))
    }

    fn fetched(&mut self, cx: &mut Context, id: u64, answer: Result<HttpResponse>) -> Result<()> {
        let Some(request) = ASKED.get(&id)? else {
            return heard(cx, &format!("fetched {id} {}", said(&answer)));
        };
        ASKED.remove(&id)?;
        let answer = answer.and_then(|response| {
            encoded(&json!({
                "status": response.status,
                "type": response.header("content-type"),
                "location": response.header("location"),
                "bytes": response.body.len(),
                "body": short(&String::from_utf8_lossy(&response.body)),
            }))
        });
        cx.finish(request, answer)
    }

    fn connected(&mut self, cx: &mut Context, socket: Socket) -> Result<()> {
        heard(cx, &format!("connected {}", socket.0))
    }

    fn opened(&mut self, cx: &mut Context, socket: Socket, port: u16, remote: &str) -> Result<()> {
        heard(cx, &format!("opened {} {port} {remote}", socket.0))?;
        socket.credit(cx, POURED_BYTES as u32)?;
        socket.write(cx, b"welcome\n")
    }

    fn data(&mut self, cx: &mut Context, socket: Socket, data: &[u8]) -> Result<()> {
        let text = String::from_utf8_lossy(data);
        if text.contains("refuse this") {
            return Err(Error::invalid("it does not understand that"));
        }
        let (id, bytes) = (socket.0, data.len());
        heard(cx, &format!("data {id} {bytes} {}", short(text.trim_end())))
    }

    fn writable(&mut self, cx: &mut Context, socket: Socket, room: u32) -> Result<()> {
        heard(cx, &format!("writable {} {room}", socket.0))
    }

    fn datagram(
        &mut self,
        cx: &mut Context,
        port: u16,
        from: SocketAddr,
        data: &[u8],
    ) -> Result<()> {
        let text = String::from_utf8_lossy(data);
        heard(cx, &format!("datagram {port} {}", text.trim_end()))?;
        cx.send_to(port, from, b"pong\n")
    }

    fn closed(&mut self, cx: &mut Context, socket: Socket, why: Closing) -> Result<()> {
        let why = match why {
            Closing::Ended => "ended".to_owned(),
            Closing::Failed(error) => format!("failed {:?}", error.code),
            Closing::Broken => "broken".to_owned(),
            Closing::Restarted => "restarted".to_owned(),
            Closing::Lost => "lost".to_owned(),
            Closing::Revoked => "revoked".to_owned(),
        };
        heard(cx, &format!("closed {} {why}", socket.0))
    }
}

fn fetch(cx: &mut Context, request: &Request) -> Result<u64> {
    let (url, label): (String, Option<String>) =
        (request.argument("url")?, request.argument("label")?);
    let seconds: Option<u64> = request.argument("seconds")?;
    let fetch = Fetch::get(&url).label(&label.unwrap_or_default());
    let patience = Duration::from_secs(seconds.unwrap_or(30));
    fetch.role("browser").send(cx, patience)
}

fn connect(cx: &mut Context, request: &Request) -> Result<Reply> {
    let (host, port): (String, u16) = (request.argument("host")?, request.argument("port")?);
    let tls: Option<bool> = request.argument("tls")?;
    let label: Option<String> = request.argument("label")?;
    let credit: Option<u32> = request.argument("credit")?;
    let wanted = match tls {
        Some(true) => Connect::tls(&host, port),
        _ => Connect::tcp(&host, port),
    };
    let socket = wanted.label(&label.unwrap_or_default()).open(cx)?;
    socket.credit(cx, credit.unwrap_or(POURED_BYTES as u32))?;
    heard(cx, &format!("connects {}", socket.0))?;
    Reply::done(&socket.0)
}

fn echo(cx: &Context, request: &HttpRequest) -> Value {
    let principal = match cx.principal() {
        Principal::Node => "node",
        Principal::User(name) => name,
    };
    let names: Vec<_> = request.headers.iter().map(|(name, _)| name).collect();
    json!({
        "principal": principal,
        "method": request.method,
        "path": request.path,
        "query": request.query,
        "remote": request.remote,
        "agent": request.header("user-agent"),
        "headers": names,
        "bytes": request.body.len(),
    })
}

fn said(answer: &Result<HttpResponse>) -> String {
    match answer {
        Ok(response) => response.status.to_string(),
        Err(error) => format!("{:?}", error.code),
    }
}

fn short(text: &str) -> &str {
    text.get(..text.floor_char_boundary(SHOWN_BYTES))
        .unwrap_or(text)
}

fn heard(cx: &Context, line: &str) -> Result<()> {
    HEARD.set(&cx.event(), &line.to_owned())
}

#[expect(clippy::panic, reason = "what it is for")]
fn broken() -> ! {
    panic!("broken on purpose")
}

plugin!(Porter);
