//! Names of targets and services as people, programs and configs write them.

use wormholes_proto::{
    Host, MAX_NAME_BYTES, NodeId, Reader, ServiceName, Target, Writer, is_special_use,
};

/// A host, a target, a service or a node id.
pub fn target(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Ok(host) = Host::parse(&text) {
        check_host(&text, &host);
    }
    if let Ok(target) = text.parse::<Target>() {
        assert_eq!(target.to_string().parse(), Ok(target.clone()));
        let mut writer = Writer::new();
        target.encode(&mut writer);
        let bytes = writer.into_vec();
        let mut reader = Reader::new(&bytes);
        assert_eq!(Target::decode(&mut reader), Ok(target));
        assert!(reader.is_empty());
    }
    if let Ok(service) = ServiceName::parse(&text) {
        assert_eq!(service.as_str(), text);
        assert!(service.as_str().len() <= 63);
    }
    if let Ok(id) = text.parse::<NodeId>() {
        assert_eq!(id.to_string(), text, "an id has one spelling");
    }
}

fn check_host(text: &str, host: &Host) {
    let spelt = host.to_string();
    assert_eq!(Host::parse(&spelt).as_ref(), Ok(host), "not its own name");
    if let Some(name) = host.name() {
        assert!((1..=MAX_NAME_BYTES).contains(&name.len()));
        assert!(name.is_ascii());
        assert_eq!(name, name.to_ascii_lowercase());
        let may_leave = !is_special_use(name);
        assert!(!(may_leave && is_special_use(text)), "{text} may leave");
    }
}
