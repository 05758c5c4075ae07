//! HTTP and connections in the kit: browsers, servers and other ends that a test plays.

use std::fs;

use serde_json::{Value, json};
use wormholes_plugin::{Error, ErrorCode, HttpRequest, HttpResponse, Principal, Result, Socket};
use wormholes_plugin_kit::{At, Drive, World, every_fault};
use wormholes_porter::Porter;
use wormholes_tests::workspace;

const NODE: Principal = Principal::Node;

fn manifest() -> String {
    fs::read_to_string(workspace::root().join("tests/porter/plugin.toml")).unwrap()
}

fn browser(method: &str, path: &str, body: &str) -> HttpRequest {
    HttpRequest {
        method: method.to_owned(),
        path: path.to_owned(),
        query: None,
        headers: Vec::new(),
        body: body.as_bytes().to_vec(),
        remote: "192.0.2.1".to_owned(),
    }
}

fn page(response: Result<HttpResponse>) -> (u16, String) {
    let response = response.unwrap();
    (response.status, String::from_utf8(response.body).unwrap())
}

fn heard(node: &mut At<'_, Porter>) -> Vec<String> {
    serde_json::from_value(node.query(&NODE, "heard", json!({})).unwrap()).unwrap()
}

fn connect(node: &mut At<'_, Porter>, credit: u32) -> Socket {
    let arguments = json!({ "host": "irc.example", "port": 6667, "credit": credit });
    let id = node.request(&NODE, "connect", arguments).unwrap();
    Socket(id.as_u64().unwrap())
}

#[test]
fn a_browser_in_the_kit_gets_what_one_gets_from_a_node() {
    let mut world = World::<Porter>::new(1, &manifest());
    let mut node = world.at(0);
    let posted = node.http(&NODE, browser("POST", "/porter/notes", "<b>"));
    assert_eq!(page(posted), (201, "kept\n".to_owned()));
    node.restart();
    let listed = node.http(&NODE, browser("GET", "/porter/notes", ""));
    assert_eq!(
        page(listed),
        (200, "<ul><li>&lt;b&gt;</li></ul>\n".to_owned())
    );
    let refused = |node: &mut At<'_, Porter>, method: &str, path: &str, body: &str| {
        node.http(&NODE, browser(method, path, body))
            .unwrap_err()
            .code
    };
    for (path, code) in [
        ("/other", ErrorCode::NotFound),
        ("/porter/no", ErrorCode::Denied),
        ("/porter/break", ErrorCode::Failed),
        ("/porter/notes/sneak", ErrorCode::Denied),
    ] {
        assert_eq!(refused(&mut node, "GET", path, ""), code, "{path}");
    }
    let long = "x".repeat((256 << 10) + 1);
    assert_eq!(
        refused(&mut node, "POST", "/porter/notes", &long),
        ErrorCode::Quota
    );
    let ann = Principal::User("ann".into());
    let nobody = node.http(&ann, browser("GET", "/porter/echo", ""));
    assert_eq!(nobody.unwrap_err().code, ErrorCode::NotFound);
    node.add_user("ann");
    let (_, echoed) = page(node.http(&ann, browser("GET", "/porter/echo", "")));
    let echoed: Value = serde_json::from_str(&echoed).unwrap();
    assert_eq!(echoed["principal"], "ann");
}

#[test]
fn browsers_in_the_kit_wait_leave_and_are_too_many() {
    let mut world = World::<Porter>::new(2, &manifest());
    let mut node = world.at(0);
    let later = browser("GET", "/porter/later", "");
    let tickets: Vec<_> = (0..3)
        .map(|_| node.ask_http(&NODE, later.clone()).unwrap())
        .collect();
    let fourth = node.ask_http(&NODE, later.clone()).unwrap_err();
    assert_eq!(fourth.code, ErrorCode::Unavailable);
    node.leave(&tickets[0]);
    assert_eq!(heard(&mut node).last().unwrap(), "left");
    node.http(&NODE, browser("POST", "/porter/finish", "done"))
        .unwrap();
    assert_eq!(node.http_answer(&tickets[0]), None);
    for ticket in &tickets[1..] {
        let answer = node.http_answer(ticket).unwrap();
        assert_eq!(page(answer), (200, "done".to_owned()));
    }
    // Nobody answers in time, or the node ends before.
    let late = node.http(&NODE, later.clone()).unwrap_err();
    assert_eq!(late.code, ErrorCode::Expired);
    let ticket = node.ask_http(&NODE, later).unwrap();
    node.restart();
    let stopped = node.http_answer(&ticket).unwrap().unwrap_err();
    assert_eq!(stopped.code, ErrorCode::Unavailable);
}

#[test]
fn a_server_in_the_kit_answers_each_request_once() {
    let mut world = World::<Porter>::new(3, &manifest());
    let mut node = world.at(0);
    let ask =
        |node: &mut At<'_, Porter>, url: &str| node.request(&NODE, "fetch", json!({ "url": url }));
    let nobody = ask(&mut node, "http://a.example/").unwrap_err();
    assert_eq!(nobody.code, ErrorCode::Unavailable);
    node.serve(|wanted| match wanted.url.as_str() {
        "https://a.example/" => Ok(HttpResponse::text("hello")),
        _ => Err(Error::denied("a rule forbids it")),
    });
    let answer = ask(&mut node, "https://a.example/").unwrap();
    assert_eq!(
        (&answer["status"], &answer["body"]),
        (&json!(200), &json!("hello"))
    );
    let denied = ask(&mut node, "https://b.example/").unwrap_err();
    assert_eq!(denied.code, ErrorCode::Denied);
    assert_eq!(
        ask(&mut node, "file:///x").unwrap_err().code,
        ErrorCode::Invalid
    );
    let id = node.request(&NODE, "begin", json!({ "url": "https://a.example/" }));
    let id = id.unwrap();
    node.restart();
    let line = format!("fetched {id} Expired");
    node.until("the answer", |node| heard(node).contains(&line));
}

#[test]
fn the_other_end_in_the_kit_has_credit_and_room() {
    let mut world = World::<Porter>::new(4, &manifest());
    let mut node = world.at(0);
    let socket = connect(&mut node, 5);
    let wanted = node.sockets();
    assert_eq!(wanted.len(), 1);
    assert_eq!(
        (wanted[0].0, wanted[0].1.host.as_str()),
        (socket, "irc.example")
    );
    node.accept(socket);
    node.send(socket, b"hello, world");
    let id = socket.0;
    assert_eq!(
        heard(&mut node).last().unwrap(),
        &format!("data {id} 5 hello")
    );
    let credit = json!({ "connection": id, "bytes": 100 });
    node.request(&NODE, "credit", credit).unwrap();
    assert_eq!(node.sockets().len(), 1);
    assert_eq!(
        heard(&mut node).last().unwrap(),
        &format!("data {id} 7 , world")
    );
    let poured = node
        .request(&NODE, "pour", json!({ "connection": id }))
        .unwrap();
    assert_eq!((&poured[0], &poured[1]), (&json!(65_536), &json!(0)));
    assert_eq!(node.written(socket).len(), 65_536);
    assert_eq!(
        heard(&mut node).last().unwrap(),
        &format!("writable {id} 65536")
    );
    node.hang_up(socket);
    assert_eq!(
        heard(&mut node).last().unwrap(),
        &format!("closed {id} ended")
    );
    assert!(node.sockets().is_empty());

    let socket = connect(&mut node, 5);
    node.refuse(socket, "nobody is there");
    let line = format!("closed {} failed Unavailable", socket.0);
    assert_eq!(heard(&mut node).last(), Some(&line));
    let socket = connect(&mut node, 50);
    node.accept(socket);
    node.send(socket, b"refuse this");
    let line = format!("closed {} lost", socket.0);
    assert_eq!(heard(&mut node).last(), Some(&line));
    let socket = connect(&mut node, 50);
    node.accept(socket);
    node.restart();
    let line = format!("closed {} restarted", socket.0);
    assert_eq!(heard(&mut node).last(), Some(&line));
    let other = json!({ "host": "irc.example", "port": 22 });
    let other = node.request(&NODE, "connect", other).unwrap_err();
    assert_eq!(other.code, ErrorCode::Denied);
}

#[test]
fn a_client_in_the_kit_reaches_the_port_of_a_plugin() {
    let manifest = manifest().replace("tls:6697", "tls-listen:6697");
    let mut world = World::<Porter>::new(5, &manifest);
    let mut node = world.at(0);
    assert_eq!(
        node.visit(6667, "192.0.2.1"),
        None,
        "it listens at the other one"
    );
    let socket = node.visit(6697, "192.0.2.1").unwrap();
    let opened = format!("opened {} 6697 192.0.2.1", socket.0);
    assert_eq!(heard(&mut node).last(), Some(&opened));
    assert_eq!(node.written(socket), b"welcome\n");
    node.send(socket, b"hello");
    let line = format!("data {} 5 hello", socket.0);
    assert_eq!(heard(&mut node).last(), Some(&line));
    node.request(&NODE, "close", json!({ "connection": socket.0 }))
        .unwrap();
    node.send(socket, b"hello?");
    assert_eq!(heard(&mut node).last(), Some(&line));
}

#[test]
fn datagrams_in_the_kit_come_and_go_by_the_ports_of_a_plugin() {
    let manifest = manifest().replace("tls:6697", "udp:6881");
    let mut world = World::<Porter>::new(6, &manifest);
    let mut node = world.at(0);
    let peer = "192.0.2.1:7000".parse().unwrap();
    assert!(!node.datagram(6882, peer, b"ping"));
    assert!(node.datagram(6881, peer, b"ping"));
    assert_eq!(heard(&mut node), ["datagram 6881 ping"]);
    assert_eq!(node.datagrams(), [(6881, peer, b"pong\n".to_vec())]);
    let cast = |node: &mut At<'_, Porter>, port: u16, text: &str| {
        let arguments = json!({ "port": port, "to": "192.0.2.1:7000", "text": text });
        node.request(&NODE, "cast", arguments)
            .map_err(|error| error.code)
    };
    assert!(cast(&mut node, 6881, "hello").is_ok());
    assert_eq!(node.datagrams(), [(6881, peer, b"hello".to_vec())]);
    assert_eq!(cast(&mut node, 6882, "hello"), Err(ErrorCode::Denied));
    let long = "x".repeat(1401);
    assert_eq!(cast(&mut node, 6881, &long), Err(ErrorCode::Invalid));
}

/// Whatever fails, a connection that the plugin knows of is closed in the end, and a request has one
/// answer at most.
#[test]
fn whatever_fails_what_a_plugin_began_has_one_end() {
    every_fault::<Porter>(&manifest(), |world| {
        let mut node = world.at(0);
        node.serve(|_| Ok(HttpResponse::text("hello")));
        let url = json!({ "url": "https://a.example/" });
        // Who crashed over it asks again.
        let begun = (0..3).find_map(|_| node.request(&NODE, "begin", url.clone()).ok());
        let begun = begun.unwrap();
        let begin = format!("fetched {begun} ");
        node.until("the answer", |node| {
            heard(node).iter().any(|line| line.starts_with(&begin))
        });
        let arguments = json!({ "host": "irc.example", "port": 6667 });
        let id = (0..3).find_map(|_| node.request(&NODE, "connect", arguments.clone()).ok());
        let id = id.unwrap().as_u64().unwrap();
        node.sockets();
        node.accept(Socket(id));
        node.send(Socket(id), b"hello");
        node.hang_up(Socket(id));
        let begin = format!("closed {id} ");
        let ends = |lines: &[String]| lines.iter().filter(|it| it.starts_with(&begin)).count();
        node.until("its end", |node| ends(&heard(node)) > 0);
        node.restart();
        let lines = heard(&mut node);
        assert_eq!(ends(&lines), 1, "{lines:?}");
        let answers = lines.iter().filter(|line| line.starts_with("fetched"));
        assert!(answers.count() <= 3, "{lines:?}");
    });
}
