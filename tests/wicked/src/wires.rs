//! What it must not do by HTTP and on connections.

use std::time::Duration;

use wormholes_plugin::{
    Connect, Context, Error, Fetch, HttpResponse, Reply, Request, Result, Socket,
};

use crate::flood;

const HOUR: Duration = Duration::from_secs(3600);
/// Nobody is there.
const PORT: u16 = 9;

pub(crate) fn command(cx: &mut Context, request: &Request) -> Result<Reply> {
    match request.name.as_str() {
        "sockets" => Err(undone(flood(|_| open(cx).map(drop)))),
        "room" => {
            let socket = open(cx)?;
            Err(undone(flood(|_| socket.write(cx, &[0; 1000]))))
        }
        "fetches" => Err(undone(flood(|_| {
            Fetch::get("http://127.0.0.1:9/").send(cx, HOUR).map(drop)
        }))),
        "credit" => {
            let socket = open(cx)?;
            Err(undone(flood(|_| socket.credit(cx, 100_000))))
        }
        "foreign-port" => {
            Connect::tcp("127.0.0.1", 22).open(cx)?;
            Reply::done("it connects")
        }
        "foreign-socket" => {
            Socket(1).write(cx, b"hello")?;
            Reply::done("it wrote")
        }
        "foreign-answer" => {
            cx.respond(request.id, HttpResponse::text("forged"))?;
            Reply::done("it answered")
        }
        "split" => {
            let smuggled = Fetch::get("http://127.0.0.1:9/").header("a", "b\r\nc: d");
            smuggled.send(cx, HOUR)?;
            Reply::done("it sent")
        }
        "tunnel" => {
            Fetch::new("CONNECT", "http://127.0.0.1:9/").send(cx, HOUR)?;
            Reply::done("it sent")
        }
        "file" => {
            Fetch::get("file:///etc/passwd").send(cx, HOUR)?;
            Reply::done("it sent")
        }
        _ => Err(Error::not_found("not wicked enough")),
    }
}

/// What it did leaves nothing, however often it is told to.
fn undone((times, said): (u64, String)) -> Error {
    Error::failed(format!("{times} times, then: {said}"))
}

fn open(cx: &mut Context) -> Result<Socket> {
    Connect::tcp("127.0.0.1", PORT).open(cx)
}
