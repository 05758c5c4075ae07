//! How the parts of a recording are written that serde does not write of its own accord, or not
//! exactly: what is shared, numbers with a fraction, and words of a closed list.

/// What is shared, as itself.
pub(crate) mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<T: Serialize, S: Serializer>(
        value: &Arc<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        (**value).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<T>, D::Error> {
        T::deserialize(deserializer).map(Arc::new)
    }
}

/// The same of what may be missing.
pub(crate) mod shared_option {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<T: Serialize, S: Serializer>(
        value: &Option<Arc<T>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_deref().serialize(serializer)
    }

    pub(crate) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Arc<T>>, D::Error> {
        Option::<T>::deserialize(deserializer).map(|value| value.map(Arc::new))
    }
}

/// Nodes, as a list: each says its own id.
pub(crate) mod nodes {
    use std::{collections::BTreeMap, sync::Arc};

    use serde::{Deserialize, Deserializer, Serializer};
    use wormholes_proto::NodeId;

    use crate::view::NodeView;

    pub(crate) fn serialize<S: Serializer>(
        nodes: &BTreeMap<NodeId, Arc<NodeView>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(nodes.values().map(AsRef::as_ref))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<NodeId, Arc<NodeView>>, D::Error> {
        let nodes = Vec::<NodeView>::deserialize(deserializer)?;
        let nodes = nodes.into_iter().map(|node| (node.id, Arc::new(node)));
        Ok(nodes.collect())
    }
}

/// A number with a fraction, as the shortest text that means exactly it: readers of JSON round.
pub(crate) mod exact {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// The same of what may be missing.
pub(crate) mod exact_option {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(
        value: &Option<f64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.map(|value| value.to_string()).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<f64>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(D::Error::custom))
            .transpose()
    }
}

/// What a flow may have come by, and on: words that the host knows.
pub(crate) mod word {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    const WORDS: [&str; 6] = ["socks5", "http", "tcp", "udp", "embed", "plugin"];

    pub(crate) fn serialize<S: Serializer>(
        word: &&'static str,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(word)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<&'static str, D::Error> {
        known(&String::deserialize(deserializer)?)
    }

    pub(super) fn known<E: Error>(text: &str) -> Result<&'static str, E> {
        let word = WORDS.iter().find(|word| **word == text);
        word.copied()
            .ok_or_else(|| E::custom(format!("`{text}` is none of {}", WORDS.join(", "))))
    }
}

/// The same of what may be missing.
pub(crate) mod word_option {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        word: &Option<&'static str>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        word.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<&'static str>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| super::word::known(&text)).transpose()
    }
}

/// The name of a service, as text.
pub(crate) mod service {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
    use wormholes_proto::ServiceName;

    pub(crate) fn serialize<S: Serializer>(
        service: &Option<ServiceName>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let text = service.as_ref().map(ServiceName::as_str);
        text.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<ServiceName>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| ServiceName::parse(&text).map_err(D::Error::custom))
            .transpose()
    }
}
