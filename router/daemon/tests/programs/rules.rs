//! What scripts decide, and how rules change while flows live.

use tokio::io::AsyncWriteExt;
use wormholed::NodeOptions;
use wormholes_proto::control::FlowState;

use crate::support::{DIRECT, SOCKS, TestNode, closed_port, echo, greeter, read};

#[tokio::test]
async fn steps_are_tried_in_order_and_told_in_the_story() {
    let closed = closed_port().await;
    let script = format!(r#"fn route(c) {{ socks("{closed}").or(direct()).label("second") }}"#);
    let node = TestNode::start(&script, SOCKS).await;
    let (reply, _stream) = node.socks(&echo().await.to_string()).await;
    assert_eq!(reply, 0);
    let flow = node.node.core().flows.find(1).unwrap();
    let story = flow.story();
    assert_eq!(story.state, FlowState::Open);
    assert_eq!(story.label.as_deref(), Some("second"));
    let rule = story.rule.unwrap();
    assert_eq!((rule.script.as_str(), rule.line), ("rules.rhai", 1));
    let tries: Vec<_> = story
        .tries
        .iter()
        .map(|t| (t.tunnel.clone(), t.error.is_some()))
        .collect();
    assert_eq!(
        tries,
        [
            (format!("socks {closed}"), true),
            ("direct".to_owned(), false)
        ]
    );
}

#[tokio::test]
async fn an_open_plan_that_fails_asks_again_and_a_closed_one_does_not() {
    let closed = closed_port().await;
    let script = r#"
        fn route(c) {
            if c.user == "closed" { return direct().closed(); }
            if c.attempt < 2 { direct() } else { block("gave up: " + c.last_error) }
        }"#;
    let node = TestNode::start(script, SOCKS).await;
    assert_eq!(node.socks(&closed.to_string()).await.0, 2);
    let story = node.node.core().flows.find(1).unwrap().story();
    assert_eq!(story.decisions.len(), 3);
    let end = story.end.unwrap();
    assert!(end.contains("gave up: connection refused"), "{end}");
    let mut stream = node.connect().await;
    stream
        .write_all(b"\x05\x01\x02\x01\x06closed\x01x")
        .await
        .unwrap();
    read(&mut stream, 4).await;
    let reply = crate::support::socks_request(&mut stream, &closed.to_string()).await;
    assert_eq!(reply, 5);
    assert_eq!(
        node.node
            .core()
            .flows
            .find(2)
            .unwrap()
            .story()
            .decisions
            .len(),
        1
    );
}

#[tokio::test]
async fn scripts_see_the_program_and_its_user() {
    let script = r#"fn route(c) {
        if c.app.starts_with("programs") && c.uid >= 0 { direct() } else { block(c.app) }
    }"#;
    let node = TestNode::start(script, SOCKS).await;
    assert_eq!(node.socks(&echo().await.to_string()).await.0, 0);
    let options = NodeOptions {
        owns_process: true,
        ..NodeOptions::default()
    };
    let node = TestNode::start_with(script, SOCKS, options).await;
    assert_eq!(
        node.socks(&echo().await.to_string()).await.0,
        2,
        "a loop is refused"
    );
}

#[tokio::test]
async fn a_name_is_looked_up_once_through_the_plan_that_a_script_gives() {
    let script = r#"fn route(c) {
        if c.ip == () { return need("ip", direct()); }
        if c.ip == "127.0.0.1" || c.ip == "::1" { direct() } else { block(c.ip) }
    }"#;
    let node = TestNode::start(script, SOCKS).await;
    let port = echo().await.port();
    assert_eq!(node.socks(&format!("localhost:{port}")).await.0, 0);
    let story = node.node.core().flows.find(1).unwrap().story();
    assert_eq!(story.tries[0].tunnel, "look-up through direct");
    assert_eq!(node.socks("hidden.onion:80").await.0, 2);
    let story = node.node.core().flows.find(2).unwrap().story();
    assert!(story.end.unwrap().contains("not looked up"));
}

#[tokio::test]
async fn a_look_up_ends_where_its_plan_blocks() {
    let script = r#"fn route(c) {
        if c.ip == () { return need("ip", socks("127.0.0.1:9").or(block("no")).or(direct())); }
        direct()
    }"#;
    let node = TestNode::start(script, SOCKS).await;
    assert_eq!(node.socks("localhost:80").await.0, 2);
    let story = node.node.core().flows.find(1).unwrap().story();
    assert_eq!(story.tries.len(), 2);
}

#[tokio::test]
async fn rules_change_for_new_flows_and_roll_back() {
    let node = TestNode::start(DIRECT, SOCKS).await;
    let target = greeter().await.to_string();
    let (_, mut living) = node.socks(&target).await;
    read(&mut living, 5).await;
    let path = node.dir.path().join("rules.rhai");
    std::fs::write(&path, r#"fn route(c) { block("changed") }"#).unwrap();
    let reload = node.node.reload().await.unwrap();
    assert_eq!((reload.rules.number, reload.restart_for), (2, vec![]));
    assert_eq!(node.socks(&target).await.0, 2);
    living.write_all(b"alive").await.unwrap();
    assert_eq!(read(&mut living, 5).await, b"alive");

    std::fs::write(&path, "fn route(c) { dircet() }").unwrap();
    let error = node.node.reload().await.unwrap_err().to_string();
    assert!(error.contains("rules.rhai:1"), "{error}");
    let policy = &node.node.core().policy;
    assert_eq!(
        policy.current().number,
        2,
        "rules that do not load change nothing"
    );

    assert_eq!(policy.rollback().unwrap().number, 1);
    assert_eq!(node.socks(&target).await.0, 0);
    assert!(policy.rollback().is_err());
}

#[tokio::test]
async fn rules_that_fail_their_own_tests_are_not_loaded() {
    let node = TestNode::start(DIRECT, SOCKS).await;
    let write = |name, text| std::fs::write(node.dir.path().join(name), text).unwrap();
    let cases = r#"test("mail is blocked", || { expect(route(#{ host: "a.example", port: 25 }).blocks); });"#;
    write("rules.test.rhai", cases);
    let error = node.node.reload().await.unwrap_err().to_string();
    assert!(error.contains("rules.test.rhai:1"), "{error}");
    assert_eq!(node.node.core().policy.current().number, 1);
    let script = r#"fn route(c) { if c.port == 25 { block("mail") } else { direct() } }"#;
    write("rules.rhai", script);
    assert_eq!(node.node.reload().await.unwrap().rules.number, 2);
}

#[tokio::test]
async fn a_reload_of_the_same_makes_no_generation() {
    let node = TestNode::start(DIRECT, SOCKS).await;
    assert_eq!(node.node.reload().await.unwrap().rules.number, 1);
    let config = node.dir.path().join("config.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text + "[limits]\nflows = 7\n").unwrap();
    let reload = node.node.reload().await.unwrap();
    assert_eq!(
        (reload.rules.number, reload.restart_for),
        (1, vec!["limits.flows".to_owned()])
    );
}

#[tokio::test]
async fn a_file_that_changes_without_pause_is_loaded() {
    let options = NodeOptions {
        watch_rules: true,
        ..NodeOptions::default()
    };
    let node = TestNode::start_with(DIRECT, SOCKS, options).await;
    let path = node.dir.path().join("rules.rhai");
    let policy = node.node.core().policy.clone();
    let mut tries = 0;
    while policy.current().number == 1 {
        // The watch may begin after the first write.
        tries += 1;
        let text = format!("fn route(c) {{ block(\"{tries}\") }}");
        let beside = path.with_extension("new");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(&beside, &path).unwrap();
        for _ in 0..10_000 {
            tokio::task::yield_now().await;
        }
    }
    node.node.shutdown().await;
}

#[tokio::test]
async fn without_scripts_the_default_decides() {
    let pass = "fn route(c) { pass() }";
    let target = echo().await.to_string();
    let node = TestNode::start(pass, SOCKS).await;
    assert_eq!(node.socks(&target).await.0, 2);
    let node = TestNode::start(pass, &format!("{SOCKS}[rules]\ndefault = 'direct'\n")).await;
    assert_eq!(node.socks(&target).await.0, 0);
    assert_eq!(node.socks("hidden.onion:80").await.0, 2);
}

#[tokio::test]
async fn a_script_that_never_ends_blocks_its_flow_only() {
    let script = r#"fn route(c) { if c.host == "spin.example" { loop { } } direct() }"#;
    let node = TestNode::start(script, SOCKS).await;
    let target = echo().await.to_string();
    for _ in 0..3 {
        let start = std::time::Instant::now();
        assert_eq!(node.socks("spin.example:80").await.0, 2);
        assert!(
            start.elapsed() < std::time::Duration::from_secs(1),
            "{:?}",
            start.elapsed()
        );
        assert_eq!(node.socks(&target).await.0, 0);
    }
    let (errors, count) = node.node.core().policy.errors();
    let times: Vec<u64> = errors.iter().map(|error| error.count).collect();
    assert_eq!((times, count), (vec![3], 3));
}
