//! Flows that would come back to the node that sends them out.

use crate::{
    name_server::NameServer,
    support::{SOCKS, TestNode, closed_port},
};

#[tokio::test]
async fn no_tunnel_leads_to_an_entrance_of_the_node_itself() {
    let names = NameServer::start(&[]).await;
    let exit = TestNode::exit("fn exit(x) { allow() }", &names).await;
    let upstream = TestNode::start("fn route(c) { direct() }", SOCKS).await;
    let script = format!(
        r#"fn route(c) {{
            socks("{}").or(peer("exit").direct().exit()).or(direct())
        }}"#,
        upstream.entrance()
    );
    let config = format!("{SOCKS}[metrics]\nlisten = '127.0.0.1:0'\n");
    let node = TestNode::start(&script, &config).await;
    node.befriend(&[("exit", &exit)]);
    let entrance = node.entrance().port();
    let metrics = node.node.metrics_address().unwrap();
    for target in [
        format!("127.0.0.1:{entrance}"),
        format!("0.0.0.0:{entrance}"),
        format!("::ffff:127.0.0.1:{entrance}"),
        metrics.to_string(),
    ] {
        assert_eq!(node.socks(&target).await.0, 2, "{target}");
    }
    let (story, tries) = node.story(1);
    assert_eq!((tries, story.decisions.len()), (vec![], 0));
    let end = story.end.unwrap();
    assert!(end.contains("this router itself"), "{end}");
    // Another address at the same port is somebody else's.
    let reply = node.socks(&format!("127.0.0.2:{entrance}")).await.0;
    assert_ne!(reply, 2);
    assert_ne!(node.socks(&closed_port().await.to_string()).await.0, 2);
}
