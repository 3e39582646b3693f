use http::header::{ORIGIN, USER_AGENT};
use proptest::prelude::*;

use super::*;

/// The request of RFC 6455 section 1.2.
fn request() -> HeaderMap {
    HeaderMap::from_iter(
        [
            (HOST, "server.example.com"),
            (UPGRADE, "websocket"),
            (CONNECTION, "Upgrade"),
            (SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ=="),
            (ORIGIN, "http://example.com"),
            (SEC_WEBSOCKET_PROTOCOL, "chat, superchat"),
            (SEC_WEBSOCKET_VERSION, "13"),
        ]
        .map(|(name, value)| (name, HeaderValue::from_static(value))),
    )
}

fn check(headers: &HeaderMap) -> Result<Accept, HandshakeError> {
    check_request(&Method::GET, Version::HTTP_11, headers)
}

/// The refusal of the RFC's request with one header replaced by `values`.
#[track_caller]
fn refusal(name: HeaderName, values: &[&'static str]) -> (u16, HandshakeError) {
    let mut headers = request();
    headers.remove(&name);
    for value in values {
        headers.append(name.clone(), HeaderValue::from_static(value));
    }
    let error = check(&headers).expect_err("has to be refused");
    assert_eq!(error.headers()[CONNECTION], "close");
    (error.status().as_u16(), error)
}

#[test]
fn the_request_of_the_rfc_gets_the_answer_of_the_rfc() {
    let accept = check(&request()).unwrap();
    assert_eq!(accept.protocols().collect::<Vec<_>>(), ["chat", "superchat"]);
    let (headers, agreed) = accept.response(Some("chat"), None);
    assert_eq!(headers[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert_eq!(headers[UPGRADE], "websocket");
    assert_eq!(headers[CONNECTION], "Upgrade");
    assert_eq!(headers[SEC_WEBSOCKET_PROTOCOL], "chat");
    assert_eq!(headers.len(), 4);
    assert_eq!(agreed, Agreed { protocol: Some("chat".into()), deflate: None });
}

#[test]
fn only_get_over_http_1_1_opens_a_websocket() {
    let method = check_request(&Method::POST, Version::HTTP_11, &request()).unwrap_err();
    assert_eq!((method.status().as_u16(), &method.headers()[ALLOW]), (405, &"GET".parse().unwrap()));
    for version in [Version::HTTP_09, Version::HTTP_10, Version::HTTP_2] {
        let error = check_request(&Method::GET, version, &request()).unwrap_err();
        assert_eq!((error.status().as_u16(), error), (400, HandshakeError::HttpVersion));
    }
}

#[test]
fn exactly_one_host_is_needed() {
    assert_eq!(refusal(HOST, &[]), (400, HandshakeError::Host));
    assert_eq!(refusal(HOST, &["a", "b"]), (400, HandshakeError::Host));
}

#[test]
fn a_request_with_a_body_is_refused() {
    for length in ["5", "0, 5", "00", "-1", "x", ""] {
        assert_eq!(refusal(CONTENT_LENGTH, &[length]), (400, HandshakeError::Body), "{length}");
    }
    assert_eq!(refusal(CONTENT_LENGTH, &["0", "5"]), (400, HandshakeError::Body));
    assert_eq!(refusal(TRANSFER_ENCODING, &["chunked"]), (400, HandshakeError::Body));
    let mut headers = request();
    headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    assert!(check(&headers).is_ok());
}

#[test]
fn a_request_for_another_protocol_is_answered_with_the_one_of_this_address() {
    for values in [&[][..], &["h2c"], &["websocketx"]] {
        assert_eq!(refusal(UPGRADE, values), (426, HandshakeError::Upgrade));
    }
    assert_eq!(HandshakeError::Upgrade.headers()[UPGRADE], "websocket");
    for values in [&[][..], &["keep-alive"], &["upgrades"]] {
        assert_eq!(refusal(CONNECTION, values), (400, HandshakeError::Connection));
    }
}

#[test]
fn tokens_are_found_in_lists_in_any_case() {
    let mut headers = request();
    headers.insert(CONNECTION, HeaderValue::from_static("keep-alive,  UPGRADE"));
    headers.insert(UPGRADE, HeaderValue::from_static("h2c"));
    headers.append(UPGRADE, HeaderValue::from_static("WebSocket"));
    assert!(check(&headers).is_ok());
}

#[test]
fn another_version_is_answered_with_the_supported_one() {
    for values in [&[][..], &["12"], &["8"], &["13, 8"], &["13", "13"], &["013"]] {
        assert_eq!(refusal(SEC_WEBSOCKET_VERSION, values), (426, HandshakeError::WebSocketVersion));
    }
    assert_eq!(HandshakeError::WebSocketVersion.headers()[SEC_WEBSOCKET_VERSION], "13");
}

#[test]
fn a_key_is_16_bytes_in_base64_once() {
    for values in [
        &[][..],
        &[""],
        &["dGhlIHNhbXBsZSBub25jZQ"],
        &["dGhlIHNhbXBsZSBub25j"],
        &["dGhlIHNhbXBsZSBub25jZXM="],
        &["dGhlIHNhbXBsZSBub25jZXNz"],
        &["!!!!IHNhbXBsZSBub25jZQ=="],
        &["dGhlIHNhbXBsZSBub25jZQ==, x"],
        &["dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ=="],
    ] {
        assert_eq!(refusal(SEC_WEBSOCKET_KEY, values), (400, HandshakeError::Key), "{values:?}");
    }
}

#[test]
fn values_that_are_not_ascii_are_ignored_or_refused() {
    let strange = HeaderValue::from_bytes(b"caf\xe9, \xff\xfe").unwrap();
    let mut headers = request();
    headers.insert(SEC_WEBSOCKET_PROTOCOL, strange.clone());
    headers.append(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("chat"));
    headers.insert(SEC_WEBSOCKET_EXTENSIONS, strange.clone());
    headers.insert(USER_AGENT, strange.clone());
    let accept = check(&headers).unwrap();
    assert_eq!(accept.protocols().collect::<Vec<_>>(), ["chat"]);
    assert_eq!(accept.response(None, Some(DeflateParams::default())).1, Agreed::default());
    for name in [UPGRADE, CONNECTION, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, CONTENT_LENGTH] {
        let mut headers = request();
        headers.insert(name, strange.clone());
        assert!(check(&headers).is_err());
    }
}

#[test]
fn a_list_of_nothing_but_blanks_and_commas_offers_nothing() {
    let mut headers = request();
    let blanks = format!("{}{}", " ".repeat(10_000), ", ,".repeat(2_000));
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_str(&blanks).unwrap());
    assert_eq!(check(&headers).unwrap().protocols().count(), 0);
}

#[test]
fn a_protocol_that_was_not_offered_is_not_answered() {
    let accept = check(&request()).unwrap();
    for protocol in ["Chat", "cha", "chat, superchat", "other"] {
        let (headers, agreed) = accept.response(Some(protocol), None);
        assert!(agreed.protocol.is_none() && !headers.contains_key(SEC_WEBSOCKET_PROTOCOL));
    }
}

#[test]
fn compression_is_agreed_on_if_both_want_it() {
    let mut headers = request();
    let offer = "foo; a=\", permessage-deflate, \", permessage-deflate; server_max_window_bits=99, \
                 permessage-deflate; client_max_window_bits";
    headers.insert(SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_static(offer));
    let accept = check(&headers).unwrap();
    let wish = DeflateParams { client_max_window_bits: 10, ..DeflateParams::default() };
    let (headers, agreed) = accept.response(None, Some(wish));
    assert_eq!(agreed.deflate, Some(wish));
    assert_eq!(
        headers[SEC_WEBSOCKET_EXTENSIONS],
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover; \
         client_max_window_bits=10"
    );
    assert_eq!(accept.response(None, None).1.deflate, None);
}

// ------------------------------------------------------------------------------------------ client

fn offer() -> Offer {
    let wish = Some(DeflateParams::default());
    Offer::new(*b"the sample nonce", &["chat", "superchat"], wish).unwrap()
}

fn response() -> HeaderMap {
    HeaderMap::from_iter(
        [
            (UPGRADE, "websocket"),
            (CONNECTION, "Upgrade"),
            (SEC_WEBSOCKET_ACCEPT, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        ]
        .map(|(name, value)| (name, HeaderValue::from_static(value))),
    )
}

/// What the client makes of the RFC's response with one header replaced by `values`.
fn response_with(name: HeaderName, values: &[&'static str]) -> Result<Agreed, ResponseError> {
    let mut headers = response();
    headers.remove(&name);
    for value in values {
        headers.append(name.clone(), HeaderValue::from_static(value));
    }
    offer().check_response(StatusCode::SWITCHING_PROTOCOLS, &headers)
}

#[test]
fn a_client_asks_as_the_rfc_does() {
    let headers = offer().headers();
    for (name, value) in [
        (UPGRADE, "websocket"),
        (CONNECTION, "Upgrade"),
        (SEC_WEBSOCKET_VERSION, "13"),
        (SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ=="),
        (SEC_WEBSOCKET_PROTOCOL, "chat, superchat"),
    ] {
        assert_eq!(headers[name], value);
    }
    let plain = Offer::new([0; 16], &[], None).unwrap().headers();
    assert!(!plain.contains_key(SEC_WEBSOCKET_PROTOCOL));
    assert!(!plain.contains_key(SEC_WEBSOCKET_EXTENSIONS));
}

#[test]
fn a_subprotocol_has_to_be_a_token() {
    for protocol in ["", "a b", "a,b", "caf\u{e9}", "a\r\nX: y"] {
        assert!(Offer::new([0; 16], &["chat", protocol], None).is_err(), "{protocol:?}");
    }
    assert!(Offer::new([0; 16], &["mainstay.v1+chat"], None).is_ok());
}

#[test]
fn a_request_that_is_passed_on_is_answered_as_its_client_wrote_it() {
    let mut asked = request();
    asked.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("jwt, eyJh/b+c=="));
    let offer = Offer::of_request(&asked, None).unwrap();
    let agreed = |protocol: &'static str| {
        let mut fields = response();
        fields.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
        fields.insert(SEC_WEBSOCKET_ACCEPT, HeaderValue::from_static("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        fields.remove(SEC_WEBSOCKET_EXTENSIONS);
        offer.check_response(StatusCode::SWITCHING_PROTOCOLS, &fields).map(|agreed| agreed.protocol)
    };
    assert_eq!(agreed("jwt"), Ok(Some("jwt".to_owned())));
    assert_eq!(agreed("eyJh/b+c=="), Ok(Some("eyJh/b+c==".to_owned())));
    assert_eq!(agreed("chat"), Err(ResponseError::Protocol));
    assert!(offer.extensions().is_none());
    asked.append(SEC_WEBSOCKET_KEY, HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
    assert!(Offer::of_request(&asked, None).is_none(), "two keys");
}

#[test]
fn a_response_has_to_prove_that_it_answers_this_request() {
    assert_eq!(response_with(USER_AGENT, &[]), Ok(Agreed::default()));
    for (name, values, error) in [
        (UPGRADE, &[][..], ResponseError::Upgrade),
        (UPGRADE, &["h2c"], ResponseError::Upgrade),
        (CONNECTION, &["close"], ResponseError::Upgrade),
        (SEC_WEBSOCKET_ACCEPT, &[], ResponseError::Accept),
        (SEC_WEBSOCKET_ACCEPT, &["AAAAAAAAAAAAAAAAAAAAAAAAAAA="], ResponseError::Accept),
        (SEC_WEBSOCKET_PROTOCOL, &["other"], ResponseError::Protocol),
        (SEC_WEBSOCKET_PROTOCOL, &["CHAT"], ResponseError::Protocol),
        (SEC_WEBSOCKET_PROTOCOL, &["chat, superchat"], ResponseError::Protocol),
        (SEC_WEBSOCKET_PROTOCOL, &["chat", "chat"], ResponseError::Protocol),
        (SEC_WEBSOCKET_EXTENSIONS, &["permessage-bzip2"], ResponseError::Extension),
        (SEC_WEBSOCKET_EXTENSIONS, &["permessage-deflate"], ResponseError::Extension),
    ] {
        assert_eq!(response_with(name, values), Err(error), "{values:?}");
        assert!(!error.is_retryable());
    }
    let chosen = response_with(SEC_WEBSOCKET_PROTOCOL, &["superchat"]);
    assert_eq!(chosen.unwrap().protocol.as_deref(), Some("superchat"));
}

#[test]
fn a_client_that_offered_no_compression_accepts_none() {
    let mut headers = response();
    let deflate = HeaderValue::from_static("permessage-deflate; server_no_context_takeover");
    headers.insert(SEC_WEBSOCKET_EXTENSIONS, deflate);
    let status = StatusCode::SWITCHING_PROTOCOLS;
    assert!(offer().check_response(status, &headers).unwrap().deflate.is_some());
    let plain = Offer::new(*b"the sample nonce", &[], None).unwrap();
    assert_eq!(plain.check_response(status, &headers), Err(ResponseError::Extension));
}

#[test]
fn refusals_that_may_pass_are_retryable() {
    for (status, temporary) in [
        (200, false),
        (301, false),
        (400, false),
        (401, false),
        (403, false),
        (404, false),
        (408, true),
        (426, true),
        (429, true),
        (500, true),
        (501, false),
        (502, true),
        (503, true),
        (505, false),
    ] {
        let status = StatusCode::from_u16(status).unwrap();
        let error = offer().check_response(status, &response()).unwrap_err();
        assert_eq!(error.is_retryable(), temporary, "{status}");
    }
}

#[test]
fn a_refusal_reports_the_advice_of_the_server() {
    for (value, expected) in [("7", Some(7)), ("x", None), ("99999999999999999999999", None)] {
        let mut headers = response();
        headers.insert(RETRY_AFTER, HeaderValue::from_static(value));
        let error = offer().check_response(StatusCode::SERVICE_UNAVAILABLE, &headers).unwrap_err();
        let retry_after = expected.map(Duration::from_secs);
        let status = StatusCode::SERVICE_UNAVAILABLE;
        assert_eq!(error, ResponseError::Refused { status, retry_after });
    }
}

proptest! {
    #[test]
    fn both_ends_agree_on_the_same(
        key in any::<[u8; 16]>(),
        protocols in prop::collection::vec("[a-z.+0-9]{1,12}", 0..4),
        pick in any::<prop::sample::Index>(),
        deflate in any::<(bool, bool)>(),
    ) {
        let names: Vec<&str> = protocols.iter().map(String::as_str).collect();
        let wish = |wanted: bool| wanted.then(DeflateParams::default);
        let offer = Offer::new(key, &names, wish(deflate.0)).unwrap();
        let mut headers = offer.headers();
        headers.insert(HOST, HeaderValue::from_static("h"));
        let accept = check(&headers).unwrap();
        let chosen = (!names.is_empty()).then(|| names[pick.index(names.len())]);
        let (headers, agreed) = accept.response(chosen, wish(deflate.1));
        prop_assert_eq!(agreed.protocol.as_deref(), chosen);
        prop_assert_eq!(agreed.deflate.is_some(), deflate.0 && deflate.1);
        prop_assert_eq!(offer.check_response(StatusCode::SWITCHING_PROTOCOLS, &headers), Ok(agreed));
    }

    #[test]
    fn no_values_make_it_panic(
        values in prop::collection::vec((0usize..9, prop::collection::vec(32u8..=255, 0..60)), 0..12),
    ) {
        const NAMES: [HeaderName; 9] = [
            UPGRADE, CONNECTION, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, SEC_WEBSOCKET_PROTOCOL,
            SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_ACCEPT, CONTENT_LENGTH, RETRY_AFTER,
        ];
        let (mut asked, mut answered) = (request(), response());
        for (name, value) in values {
            let Ok(value) = HeaderValue::from_bytes(&value) else { continue };
            asked.append(&NAMES[name], value.clone());
            answered.append(&NAMES[name], value);
        }
        if let Ok(accept) = check(&asked) {
            let _ = accept.response(Some("chat"), Some(DeflateParams::default()));
        }
        let _ = offer().check_response(StatusCode::SWITCHING_PROTOCOLS, &answered);
        let _ = offer().check_response(StatusCode::SERVICE_UNAVAILABLE, &answered);
    }
}

#[test]
fn over_http_2_connect_opens_a_websocket_without_a_key_and_is_accepted_with_200() {
    let mut headers = HeaderMap::new();
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("chat, soap"));
    let accept = check_connect("websocket", &headers).unwrap();
    let (answer, agreed) = accept.response(Some("soap"), None);
    assert_eq!((accept.status(), agreed.protocol.as_deref()), (StatusCode::OK, Some("soap")));
    let names: Vec<_> = answer.keys().map(HeaderName::as_str).collect();
    assert_eq!(
        names,
        ["sec-websocket-protocol"],
        "HTTP/2 has no Connection, Upgrade and Sec-WebSocket-Accept"
    );
    assert_eq!(check_connect("connect-udp", &headers).unwrap_err(), HandshakeError::Protocol);
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("8"));
    assert_eq!(check_connect("websocket", &headers).unwrap_err(), HandshakeError::WebSocketVersion);
}

#[test]
fn over_http_2_a_key_that_a_proxy_passes_on_is_answered_and_a_wrong_one_is_ignored() {
    let mut headers = HeaderMap::new();
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
    let accept = check_connect("websocket", &headers).unwrap();
    let (answer, _) = accept.response(None, None);
    assert_eq!(accept.status(), StatusCode::OK);
    let fields: Vec<_> = answer.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    assert_eq!(fields, [("sec-websocket-accept", &b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="[..])]);
    headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_static("short"));
    let (answer, _) = check_connect("websocket", &headers).unwrap().response(None, None);
    assert!(answer.is_empty(), "{answer:?}");
}
