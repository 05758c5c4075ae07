//! Keys and secret rows that it has, and what it must not get of them.

use wormholes_plugin::{
    Algorithm, Context, Error, ErrorCode, KeyPair, Map, Reply, Request, Result, Sealed, json,
};

use crate::{broken, flood};

const SECRET: Map<String, String, Sealed> = Map::secret("what nobody shall read");
const SECRET_FLOOD: Map<u64, u8, Sealed> = Map::secret("flood");

const DOMAIN: &str = "wicked";
const LABEL: &str = "mine";

pub(crate) fn command(cx: &mut Context, request: &Request) -> Result<Reply> {
    match request.name.as_str() {
        "secrets" => Reply::done(&flood(|n| SECRET_FLOOD.set(&n, &0))),
        "keys" => Reply::done(&flood(|n| {
            KeyPair::create(cx, &n.to_string(), Algorithm::Ed25519).map(drop)
        })),
        "misuse-keys" => Reply::done(&misuse(cx)?),
        "signatures" => Reply::done(&signatures(cx)?),
        "derived" => Reply::done(&derived(cx)?),
        "make-key" => Reply::done(&make(cx, &request.argument::<String>("name")?)?),
        "hide" => {
            SECRET.set(&request.argument("name")?, &request.argument("text")?)?;
            Reply::done(&"hidden")
        }
        "unhide" => {
            SECRET.remove(&request.argument("name")?)?;
            Reply::done(&"gone")
        }
        // A secret that nobody handed in, and what can be seen of it.
        "draw" => {
            let drawn: String = cx
                .random::<16>()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            SECRET.set(&"drawn".to_owned(), &drawn)?;
            Reply::done(&drawn.len())
        }
        "peek" => {
            let text = SECRET.get(&request.argument("name")?)?;
            Reply::done(&text.map(|text| text.len()))
        }
        // It breaks over what nobody shall read.
        "spill" => {
            SECRET.set(&"spilled".to_owned(), &"spilled".to_owned())?;
            broken(cx.attempt())
        }
        _ => Err(Error::not_found("not wicked enough")),
    }
}

/// What is sealed, changed where that is refused: 16 and 17 say so, and 18 goes on.
pub(crate) fn in_a_step(cx: &mut Context, mark: u64) -> Result<()> {
    let (name, text) = ("step".to_owned(), "in a step".to_owned());
    match mark {
        16 => SECRET.set(&name, &text),
        17 => KeyPair::create(cx, &name, Algorithm::Ed25519).map(drop),
        _ => {
            let told = [
                SECRET.set(&name, &text),
                SECRET.remove(&"kept".to_owned()),
                KeyPair::create(cx, &name, Algorithm::Ed25519).map(drop),
                KeyPair::forget(cx, "kept"),
            ];
            match told.iter().any(Result::is_ok) {
                true => Err(Error::failed("a step changed what is sealed")),
                false => Ok(()),
            }
        }
    }
}

/// The same where it may.
pub(crate) fn after_steps() -> Result<()> {
    SECRET.set(&"moved".to_owned(), &"in init".to_owned())
}

/// The rows that it hides.
pub(crate) fn hidden() -> Result<Vec<u8>> {
    json(&SECRET.page(None, 100)?)
}

/// All that is refused, and with which words; the same in every node.
fn misuse(cx: &mut Context) -> Result<Vec<String>> {
    let (node, alias) = (KeyPair::Node, KeyPair::alias("me"));
    let (derived, none) = (KeyPair::derived(LABEL), KeyPair::created("none"));
    KeyPair::create(cx, "agrees", Algorithm::X25519)?;
    KeyPair::create(cx, "opens", Algorithm::MlKem768)?;
    KeyPair::create(cx, "signs", Algorithm::Ed25519)?;
    let twice = KeyPair::create(cx, "opens", Algorithm::Ed25519);
    let (agrees, opens) = (KeyPair::created("agrees"), KeyPair::created("opens"));
    let signs = KeyPair::created("signs");
    let long = "x".repeat(129);
    let hello = b"wormholes-trunk-v1, and who I am";
    let told = [
        node.sign_raw(cx, b"d1:ad2:id20:").map(drop),
        alias.sign_raw(cx, b"d1:ad2:id20:").map(drop),
        alias.sign_raw(cx, hello).map(drop),
        derived.sign_raw(cx, hello).map(drop),
        signs.sign_raw(cx, b"wormholes node record 1\0").map(drop),
        signs
            .sign_raw(cx, b"wormholes-plugin-v1\0\x07payment")
            .map(drop),
        node.sign(cx, "", b"").map(drop),
        alias.sign(cx, &long, b"").map(drop),
        derived.sign(cx, "a\nb", b"").map(drop),
        derived.sign(cx, DOMAIN, &vec![0; (1 << 20) + 1]).map(drop),
        derived.public(cx, Algorithm::MlKem768).map(drop),
        node.public(cx, Algorithm::X25519).map(drop),
        alias.public(cx, Algorithm::X25519).map(drop),
        node.agree(cx, &[9; 32]).map(drop),
        signs.agree(cx, &[9; 32]).map(drop),
        agrees.sign(cx, DOMAIN, b"").map(drop),
        derived.agree(cx, &[0; 32]).map(drop),
        opens.decapsulate(cx, &[0; 7]).map(drop),
        opens.public(cx, Algorithm::Ed25519).map(drop),
        none.public(cx, Algorithm::Ed25519).map(drop),
        twice.map(drop),
        KeyPair::forget(cx, "none"),
        KeyPair::forget(cx, ""),
        node.sign(cx, DOMAIN, b"as the node").map(drop),
    ];
    for name in ["agrees", "opens", "signs"] {
        KeyPair::forget(cx, name)?;
    }
    let say = |told: Result<()>| match told {
        Ok(()) => "done".to_owned(),
        Err(error) => format!("{:?}: {error}", error.code),
    };
    Ok(told.map(say).to_vec())
}

/// What a signature is good for, and what not.
fn signatures(cx: &mut Context) -> Result<Vec<bool>> {
    KeyPair::create(cx, "signs", Algorithm::Ed25519)?;
    let mut good = Vec::new();
    for key in [
        KeyPair::alias("me"),
        KeyPair::derived(LABEL),
        KeyPair::created("signs"),
    ] {
        let by = public(&key, cx)?;
        let signature = key.sign(cx, DOMAIN, b"message")?;
        good.push(cx.verify(&by, DOMAIN, b"message", &signature));
        good.push(cx.verify(&by, "other", b"message", &signature));
        good.push(cx.verify(&by, DOMAIN, b"massage", &signature));
        good.push(cx.verify(&cx.node_id(), DOMAIN, b"message", &signature));
        good.push(cx.verify_raw(&by, b"message", &signature));
        if let Ok(raw) = key.sign_raw(cx, b"message") {
            good.push(cx.verify_raw(&by, b"message", &raw));
            good.push(cx.verify(&by, DOMAIN, b"message", &raw));
        }
    }
    good.push(public(&KeyPair::alias("me"), cx)? == cx.alias_key("me"));
    good.push(public(&KeyPair::alias("me"), cx)? == public(&KeyPair::derived("me"), cx)?);
    good.push(public(&KeyPair::Node, cx)? == cx.node_id());
    KeyPair::create(cx, "agrees", Algorithm::X25519)?;
    let (one, other) = (KeyPair::created("agrees"), KeyPair::derived(LABEL));
    let of = |key: &KeyPair| array(&key.public(cx, Algorithm::X25519)?);
    good.push(one.agree(cx, &of(&other)?)? == other.agree(cx, &of(&one)?)?);
    KeyPair::create(cx, "opens", Algorithm::MlKem768)?;
    let opens = KeyPair::created("opens");
    good.push(opens.public(cx, Algorithm::MlKem768)?.len() == 1184);
    good.push(opens.decapsulate(cx, &[7; 1088])? == opens.decapsulate(cx, &[7; 1088])?);
    KeyPair::forget(cx, "signs")?;
    KeyPair::forget(cx, "agrees")?;
    KeyPair::forget(cx, "opens")?;
    Ok(good)
}

/// A key that is created once.
fn make(cx: &mut Context, name: &str) -> Result<[u8; 32]> {
    match public(&KeyPair::created(name), cx) {
        Err(error) if error.code == ErrorCode::NotFound => {
            array(&KeyPair::create(cx, name, Algorithm::Ed25519)?)
        }
        made => made,
    }
}

/// The keys that are always there.
fn derived(cx: &Context) -> Result<[u8; 32]> {
    public(&KeyPair::derived(LABEL), cx)
}

fn public(key: &KeyPair, cx: &Context) -> Result<[u8; 32]> {
    array(&key.public(cx, Algorithm::Ed25519)?)
}

fn array(bytes: &[u8]) -> Result<[u8; 32]> {
    let other = |_| Error::failed("a public key of another length");
    bytes.try_into().map_err(other)
}
