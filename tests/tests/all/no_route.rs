//! A host without routes: what a program is told when its target's network is out of reach.

use wormholes_tests::{Namespace, Setup};

const EXIT: &str = "[exit]\nenabled = true\nallow = [\"0.0.0.0/0\", \"::/0\"]";

#[tokio::test]
async fn a_network_out_of_reach_is_called_that_whoever_dials() {
    let host = Namespace::new().unwrap();
    let inside = |name: &str| Setup::new(name).unwrap().entrances().in_namespace(&host);
    let client = inside("client");
    let exit = inside("exit").listen("127.1.0.1:0").config(EXIT);
    let exit = exit.peer_id("client", client.id(), 2, "").start();
    let proxy = inside("proxy").script("rules.rhai", "fn route(c) { direct().closed() }");
    let (exit, proxy) = tokio::try_join!(exit, proxy.start()).unwrap();
    let script = format!(
        r#"fn route(c) {{
            switch c.user {{
                "exit" => peer("exit").direct().exit().closed(),
                "upstream" => socks("{}").closed(),
                _ => direct().closed()
            }}
        }}"#,
        proxy.entrance("socks5").unwrap()
    );
    let client = client.script("rules.rhai", &script).peer(&exit, 2);
    let client = client.start().await.unwrap();
    let entrance = client.entrance("socks5").unwrap();
    for (user, target, reply) in [
        ("direct", "1.1.1.1", 3),
        ("exit", "1.1.1.1", 3),
        ("upstream", "1.1.1.1", 3),
        ("direct", "[2606:4700::1111]", 3),
        // An address of one link, nobody says which: a host that cannot be found, or is banned.
        ("direct", "[fe80::1]", 4),
        ("upstream", "[fe80::1]", 4),
        ("exit", "[fe80::1]", 2),
    ] {
        let mut curl = host.command("curl");
        curl.args(["--silent", "--show-error", "--max-time", "60", "--proxy"])
            .arg(format!("socks5h://{user}:x@{entrance}"))
            .arg(format!("http://{target}/"));
        let output = curl.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            said.contains(&format!("({reply})")),
            "{user} {target}: {said}"
        );
    }
}
