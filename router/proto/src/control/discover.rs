//! `rpc.discover`: an OpenRPC 1.3 document made from the types of calls and reports.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::{
    call::{MethodSchema, schemas},
    event::Event,
    frame::ErrorCode,
    report::PROTOCOL_VERSION,
};

const ERRORS: [(ErrorCode, &str); 10] = [
    (ErrorCode::Parse, "not JSON"),
    (ErrorCode::InvalidRequest, "not a request"),
    (ErrorCode::NoMethod, "no such method"),
    (ErrorCode::InvalidParams, "the method takes other params"),
    (ErrorCode::Internal, "a bug of the daemon"),
    (ErrorCode::Failed, "it was tried and did not work"),
    (ErrorCode::Denied, "the caller may not do that"),
    (ErrorCode::NotFound, "no such flow, peer or generation"),
    (ErrorCode::Busy, "a limit is reached"),
    (
        ErrorCode::Unsettled,
        "no answer in time, or the disk failed: it may be done, or not",
    ),
];

/// The document.
pub fn discover() -> Value {
    let mut settings = SchemaSettings::draft07();
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    let mut generator = settings.into_generator();
    let methods: Vec<Value> = schemas(&mut generator).into_iter().map(method).collect();
    let event = generator.subschema_for::<Event>();
    let errors: Vec<Value> = ERRORS
        .iter()
        .map(|(code, message)| json!({ "code": *code as i64, "message": message }))
        .collect();
    json!({
        "openrpc": "1.3.2",
        "info": {
            "title": "Wormholes control protocol",
            "version": PROTOCOL_VERSION.to_string(),
        },
        "methods": methods,
        "components": { "schemas": generator.take_definitions(true) },
        "x-errors": errors,
        "x-notifications": [{ "name": "event", "params": event }],
    })
}

fn method(method: MethodSchema) -> Value {
    let schema = method.params.as_value();
    let required = |name: &str| {
        schema
            .get("required")
            .and_then(Value::as_array)
            .is_some_and(|names| names.iter().any(|required| required == name))
    };
    let none = Map::new();
    let properties = schema
        .get("properties")
        .and_then(Value::as_object)
        .unwrap_or(&none);
    let params: Vec<Value> = properties
        .iter()
        .map(|(name, schema)| json!({ "name": name, "required": required(name), "schema": schema }))
        .collect();
    json!({
        "name": method.name,
        "summary": method.summary,
        "paramStructure": "by-name",
        "params": params,
        "result": { "name": "result", "schema": method.result },
        "x-access": method.access,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Access, Call};

    /// Frozen: a method that goes, or asks for more rights, breaks people's programs.
    /// All methods, and who may call them.
    const METHODS: [&str; 56] = [
        "rpc.discover observer",
        "status observer",
        "peers observer",
        "peer.add operator",
        "peer.remove operator",
        "peer.invite operator",
        "flows observer",
        "why operator",
        "ping operator",
        "netcheck operator",
        "script.list observer",
        "script.load operator",
        "script.rollback operator",
        "script.decisions operator",
        "relay observer",
        "hop observer",
        "exit observer",
        "tor.status observer",
        "tor.start operator",
        "tor.stop operator",
        "tor.new_identity operator",
        "tor.new_onion operator",
        "tor.circuits operator",
        "i2p.status observer",
        "plugin.list observer",
        "plugin.health operator",
        "plugin.start operator",
        "plugin.stop operator",
        "plugin.log operator",
        "plugin.dead operator",
        "plugin.clear_dead operator",
        "plugin.record operator",
        "plugin.recording operator",
        "plugin.advance operator",
        "plugin.add operator",
        "plugin.update operator",
        "plugin.rollback operator",
        "plugin.remove operator",
        "plugin.ask operator",
        "blob.begin operator",
        "blob.append operator",
        "blob.finish operator",
        "blob.read operator",
        "op.start operator",
        "op.list operator",
        "op.wait operator",
        "op.cancel operator",
        "op.collect operator",
        "user.add operator",
        "user.list operator",
        "user.remove operator",
        "key observer",
        "config operator",
        "bugreport operator",
        "events.subscribe observer",
        "events.unsubscribe observer",
    ];

    #[test]
    fn methods_keep_their_names_and_roles() {
        let document = discover();
        let methods: Vec<String> = document["methods"]
            .as_array()
            .unwrap()
            .iter()
            .map(|method| {
                let text = |key: &str| method[key].as_str().unwrap().to_owned();
                format!("{} {}", text("name"), text("x-access"))
            })
            .collect();
        assert_eq!(methods, METHODS);
    }

    #[test]
    fn params_are_described_and_every_reference_leads_somewhere() {
        let document = discover();
        let methods = document["methods"].as_array().unwrap();
        let add = methods.iter().find(|m| m["name"] == "peer.add").unwrap();
        let required: Vec<(&str, bool)> = add["params"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| (p["name"].as_str().unwrap(), p["required"] == true))
            .collect();
        assert_eq!(
            required,
            [("invite", true), ("name", false), ("trust", false)]
        );
        let text = document.to_string();
        for reference in text.split("\"#/").skip(1) {
            let pointer = format!("/{}", reference.split('"').next().unwrap());
            assert!(document.pointer(&pointer).is_some(), "{pointer}");
        }
    }

    #[test]
    fn the_listed_roles_are_those_that_calls_have() {
        for method in discover()["methods"].as_array().unwrap() {
            let access: Access = serde_json::from_value(method["x-access"].clone()).unwrap();
            let name = method["name"].as_str().unwrap();
            let sample = r#"{"flow":1,"peer":"p","invite":"i","instance":"n","command":"c","operation":1,"name":"u","upload":1,"bytes":"b","hash":"h","service":"s"}"#;
            let sample = serde_json::from_str(sample).unwrap();
            let read = Call::read(name, Map::new())
                .or_else(|_| Call::read(name, only(name, sample)))
                .unwrap();
            assert_eq!((read.name(), read.access()), (name, access));
        }
    }

    fn only(method: &str, mut sample: Map<String, Value>) -> Map<String, Value> {
        let keys: &[&str] = match method {
            "why" => &["flow"],
            "peer.add" => &["invite"],
            "plugin.ask" | "op.start" => &["instance", "command"],
            "op.wait" | "op.cancel" | "op.collect" => &["operation"],
            "user.add" | "user.remove" => &["name"],
            "tor.new_onion" => &["service"],
            "blob.begin" => &["instance"],
            "blob.append" => &["upload", "bytes"],
            "blob.finish" => &["upload"],
            "blob.read" => &["instance", "hash"],
            "plugin.health" | "plugin.start" | "plugin.stop" | "plugin.log" | "plugin.dead"
            | "plugin.clear_dead" | "plugin.record" | "plugin.recording" | "plugin.advance"
            | "plugin.add" | "plugin.update" | "plugin.rollback" | "plugin.remove" => &["instance"],
            _ => &["peer"],
        };
        sample.retain(|name, _| keys.contains(&name.as_str()));
        sample
    }
}
