//! What the collector learns of this process.

use opentelemetry::{Key, KeyValue};
use opentelemetry_sdk::Resource;

const SERVICE_NAME: Key = Key::from_static_str("service.name");

/// Returns the attributes of the process: those of the variables OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, under ours.
pub(super) fn resource(name: Option<&str>) -> Resource {
    let found = Resource::builder();
    let builder = Resource::builder()
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("service.instance.id", instance()));
    let is_named = |resource: &Resource| {
        resource.get(&SERVICE_NAME).is_some_and(|name| !name.as_str().starts_with("unknown_service"))
    };
    match name {
        Some(name) => builder.with_service_name(name.to_owned()).build(),
        None if is_named(&found.build()) => builder.build(),
        None => builder.with_service_name("mainstay").build(),
    }
}

/// Returns a random UUID (RFC 9562, version 4).
fn instance() -> String {
    let mut bytes = [0; 16];
    // Without randomness all processes have one name, which costs no more than that.
    let _ = getrandom::fill(&mut bytes);
    let number = u128::from_be_bytes(bytes) & !(0xf << 76) & !(0xc << 60) | 4 << 76 | 8 << 60;
    let digits = format!("{number:032x}");
    let cut = |from: usize, to: usize| digits.get(from..to).unwrap_or_default();
    [cut(0, 8), cut(8, 12), cut(12, 16), cut(16, 20), cut(20, 32)].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_named_by_a_random_uuid() {
        let (one, other) = (instance(), instance());
        assert_ne!(one, other);
        assert_eq!(one.len(), 36);
        assert_eq!(one.as_bytes().get(14), Some(&b'4'));
        assert!(one.as_bytes().get(19).is_some_and(|byte| b"89ab".contains(byte)), "{one}");
    }
}
