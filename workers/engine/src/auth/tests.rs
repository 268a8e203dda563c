//! Tokens of another library (`tests/vectors/tokens.json`) are believed; those of an attacker, who
//! knows every public key and all of this code, are not.

use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const NOW_S: u64 = 1_700_000_000;
const SECRET: &str = "secret";
const URL: &str = "https://id.example/keys";

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../../tests/vectors/tokens.json")).unwrap()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_string()
}

fn verifier(tokens: Tokens) -> Verifier {
    let settings = Settings {
        tokens,
        ..Settings::default()
    };
    Verifier::new(&settings).unwrap()
}

fn secret() -> Tokens {
    Tokens {
        hmac_secret: SECRET.to_string(),
        ..Tokens::default()
    }
}

fn jwks() -> Tokens {
    Tokens {
        jwks_url: URL.to_string(),
        jwks_ttl: Duration::from_secs(100),
        ..Tokens::default()
    }
}

/// The sets of the vectors' keys, without those named.
fn key_sets(without: &[&str]) -> Vec<u8> {
    let mut set = vectors()["jwks"].clone();
    set["keys"]
        .as_array_mut()
        .unwrap()
        .retain(|key| !without.contains(&key["kid"].as_str().unwrap()));
    json!({ URL: set }).to_string().into_bytes()
}

fn envelope(header: &str, payload: &[u8], secret: &[u8]) -> String {
    let signed = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header),
        URL_SAFE_NO_PAD.encode(payload)
    );
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let signature = URL_SAFE_NO_PAD.encode(hmac::sign(&key, signed.as_bytes()));
    format!("{signed}.{signature}")
}

/// A token of somebody who knows [`SECRET`].
fn token(claims: &Value) -> String {
    envelope(
        r#"{"alg":"HS256"}"#,
        claims.to_string().as_bytes(),
        SECRET.as_bytes(),
    )
}

fn connection(claims: &Value) -> Result<ConnectionClaims, TokenError> {
    verifier(secret()).connection(&token(claims), NOW_S)
}

fn subscription(claims: &Value) -> Result<SubscriptionClaims, TokenError> {
    verifier(secret()).subscription(&token(claims), NOW_S)
}

fn is_invalid<T>(result: Result<T, TokenError>) -> bool {
    matches!(result, Err(TokenError::Invalid(_)))
}

/// Every algorithm of ours, and the name of its key in the vectors.
const ALGORITHMS: [(&str, &str); 7] = [
    ("RS256", "rsa"),
    ("RS384", "rsa"),
    ("RS512", "rsa"),
    ("ES256", "p256"),
    ("ES384", "p384"),
    ("ES512", "p521"),
    ("EdDSA", "ed25519"),
];

fn tokens_with(key: &str, pem: String) -> Tokens {
    let mut tokens = Tokens::default();
    match key {
        "rsa" => tokens.rsa_public_key = pem,
        "ed25519" => tokens.ed25519_public_key = pem,
        _ => tokens.ecdsa_public_key = pem,
    }
    tokens
}

#[test]
fn tokens_of_another_library_are_believed_with_their_key_in_pem() {
    let vectors = vectors();
    for (algorithm, key) in ALGORITHMS {
        let verifier = verifier(tokens_with(key, text(&vectors["public_keys"][key])));
        let claims = verifier.connection(vectors["tokens"][algorithm].as_str().unwrap(), NOW_S);
        let claims = claims.unwrap_or_else(|error| panic!("{algorithm}: {error:?}"));
        assert_eq!(claims.user, "42");
        assert_eq!(claims.info, br#"{"name":"Alice"}"#);
        assert_eq!(claims.expire_at, Some(4_102_444_800));
    }
}

#[test]
fn an_rsa_key_may_be_written_in_its_older_form() {
    let vectors = vectors();
    let pem = format!("\n  {}", text(&vectors["public_keys"]["rsa_pkcs1"]));
    let verifier = verifier(tokens_with("rsa", pem));
    let token = text(&vectors["tokens"]["RS256"]);
    assert!(verifier.connection(&token, NOW_S).is_ok());
}

#[test]
fn tokens_of_another_library_are_believed_with_the_shared_secret() {
    let vectors = vectors();
    let verifier = verifier(Tokens {
        hmac_secret: text(&vectors["secret"]),
        ..Tokens::default()
    });
    for algorithm in ["HS256", "HS384", "HS512"] {
        let token = text(&vectors["tokens"][algorithm]);
        assert_eq!(verifier.connection(&token, NOW_S).unwrap().user, "42");
    }
}

#[test]
fn tokens_of_another_library_are_believed_with_published_keys() {
    let vectors = vectors();
    let mut verifier = verifier(jwks());
    assert!(verifier.take_keys(&key_sets(&[]), NOW_S));
    for (algorithm, _) in ALGORITHMS {
        let token = text(&vectors["tokens"][algorithm]);
        assert!(verifier.connection(&token, NOW_S).is_ok(), "{algorithm}");
    }
}

#[test]
fn a_key_is_good_for_its_own_algorithms_alone() {
    let vectors = vectors();
    let all: Vec<String> = vectors["tokens"]
        .as_object()
        .unwrap()
        .values()
        .map(text)
        .collect();
    for (algorithm, key) in ALGORITHMS {
        let verifier = verifier(tokens_with(key, text(&vectors["public_keys"][key])));
        let believed = all
            .iter()
            .filter(|token| verifier.connection(token, NOW_S).is_ok());
        let expected = if key == "rsa" { 3 } else { 1 };
        assert_eq!(believed.count(), expected, "{algorithm}");
    }
}

#[test]
fn a_public_key_is_never_taken_for_a_secret() {
    let vectors = vectors();
    for (_, key) in ALGORITHMS {
        let pem = text(&vectors["public_keys"][key]);
        let forged = envelope(r#"{"alg":"HS256"}"#, br#"{"sub":"root"}"#, pem.as_bytes());
        let mut tokens = tokens_with(key, pem);
        assert!(is_invalid(
            verifier(tokens.clone()).connection(&forged, NOW_S)
        ));
        tokens.hmac_secret = SECRET.to_string();
        assert!(is_invalid(verifier(tokens).connection(&forged, NOW_S)));
    }
    // Nor is one that is published as a secret.
    let set = json!({ URL: {"keys": [{"kty": "oct", "kid": "a", "k": "c2VjcmV0"}]} });
    let mut verifier = verifier(jwks());
    verifier.take_keys(set.to_string().as_bytes(), NOW_S);
    let forged = envelope(r#"{"alg":"HS256","kid":"a"}"#, b"{}", SECRET.as_bytes());
    assert!(is_invalid(verifier.connection(&forged, NOW_S)));
}

#[test]
fn a_token_chooses_no_algorithm_that_is_not_ours() {
    let verifier = verifier(secret());
    for algorithm in [
        "none", "None", "NONE", "", "hs256", "HS1", "PS256", "ES256K", "RSA1_5",
    ] {
        let header = json!({ "alg": algorithm }).to_string();
        let signed = envelope(&header, br#"{"sub":"root"}"#, SECRET.as_bytes());
        assert!(
            is_invalid(verifier.connection(&signed, NOW_S)),
            "{algorithm}"
        );
        let unsigned = format!("{}.", signed.rsplit_once('.').unwrap().0);
        assert!(
            is_invalid(verifier.connection(&unsigned, NOW_S)),
            "{algorithm}"
        );
    }
}

#[test]
fn a_key_that_the_token_brings_along_is_not_looked_at() {
    let vectors = vectors();
    let theirs = &vectors["jwks"]["keys"][4];
    let token = text(&vectors["tokens"]["EdDSA"]);
    let (_, rest) = token.split_once('.').unwrap();
    let header = json!({"alg": "EdDSA", "jwk": theirs, "jku": URL, "x5u": URL}).to_string();
    let forged = format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header));
    assert!(is_invalid(verifier(secret()).connection(&forged, NOW_S)));
}

#[test]
fn critical_extensions_are_refused() {
    let header = r#"{"alg":"HS256","crit":["b64"],"b64":false}"#;
    let token = envelope(header, b"{}", SECRET.as_bytes());
    assert!(is_invalid(verifier(secret()).connection(&token, NOW_S)));
}

#[test]
fn nothing_is_believed_where_no_key_is_configured() {
    let verifier = verifier(Tokens::default());
    assert!(is_invalid(verifier.connection(&token(&json!({})), NOW_S)));
    let empty = envelope(r#"{"alg":"HS256"}"#, b"{}", b"");
    assert!(is_invalid(verifier.connection(&empty, NOW_S)));
}

#[test]
fn what_has_another_form_is_no_token() {
    let good = token(&json!({"sub": "42"}));
    let verifier = verifier(secret());
    assert!(verifier.connection(&good, NOW_S).is_ok());
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let (header, payload) = signed.split_once('.').unwrap();
    for bad in [
        String::new(),
        ".".to_string(),
        "..".to_string(),
        "...".to_string(),
        signed.to_string(),
        format!("{signed}."),
        format!("{good}."),
        format!("{good}.{signature}"),
        format!("{good}="),
        format!("{good} "),
        format!(" {good}"),
        format!("{good}\n"),
        format!("{header}=.{payload}.{signature}"),
        format!("{header}..{signature}"),
        format!("Bearer {good}"),
        good.replace('.', ":"),
    ] {
        assert!(is_invalid(verifier.connection(&bad, NOW_S)), "{bad:?}");
    }
}

#[test]
fn claims_of_another_form_are_refused() {
    for bad in [
        &b""[..],
        b"null",
        b"[]",
        b"\"42\"",
        b"{",
        b"{}{}",
        b"\xff\xfe",
        br#"{"sub":42}"#,
        br#"{"sub":["42"]}"#,
        br#"{"sub":"a","sub":"b"}"#,
        br#"{"exp":"2100-01-01"}"#,
        br#"{"exp":"4102444800"}"#,
        br#"{"exp":[4102444800]}"#,
        br#"{"exp":NaN}"#,
        br#"{"exp":4102444800,"exp":1}"#,
        br#"{"expire_at":-1}"#,
        br#"{"expire_at":"never"}"#,
        br#"{"channels":"news"}"#,
        br#"{"channels":[1]}"#,
        br#"{"subs":["news"]}"#,
        br#"{"subs":{"news":1}}"#,
        br#"{"b64info":"not base64"}"#,
        br#"{"b64info":"bm8ganNvbg=="}"#,
        br#"{"subs":{"news":{"override":{"presence":true}}}}"#,
    ] {
        let token = envelope(r#"{"alg":"HS256"}"#, bad, SECRET.as_bytes());
        let result = verifier(secret()).connection(&token, NOW_S);
        assert!(is_invalid(result), "{}", String::from_utf8_lossy(bad));
    }
}

#[test]
fn a_token_has_a_beginning_and_an_end() {
    for (claims, expected) in [
        (json!({"exp": NOW_S + 1}), true),
        (json!({"exp": NOW_S}), false),
        (json!({"exp": 0}), false),
        (json!({"exp": -1}), false),
        (json!({"exp": NOW_S as f64 + 1.5}), true),
        (json!({"exp": 1e300}), true),
        (json!({"exp": null}), true),
        (json!({"nbf": NOW_S}), true),
        (json!({"nbf": NOW_S + 1}), false),
        (json!({"nbf": NOW_S + 1, "exp": NOW_S + 9}), false),
    ] {
        let result = connection(&claims);
        assert_eq!(result.is_ok(), expected, "{claims}");
        assert!(expected || result == Err(TokenError::Expired), "{claims}");
    }
}

#[test]
fn a_forged_token_is_invalid_and_not_expired_whatever_it_says() {
    let forged = envelope(r#"{"alg":"HS256"}"#, br#"{"exp":1}"#, b"a guess");
    assert!(is_invalid(verifier(secret()).connection(&forged, NOW_S)));
}

#[test]
fn the_connection_may_live_longer_than_its_token() {
    for (claims, expected) in [
        (json!({}), None),
        (json!({"exp": NOW_S + 5}), Some(NOW_S + 5)),
        (json!({"exp": NOW_S + 5, "expire_at": 0}), None),
        (
            json!({"exp": NOW_S + 5, "expire_at": NOW_S + 9}),
            Some(NOW_S + 9),
        ),
        (json!({"expire_at": NOW_S + 9}), Some(NOW_S + 9)),
    ] {
        assert_eq!(connection(&claims).unwrap().expire_at, expected, "{claims}");
    }
}

#[test]
fn the_audience_has_to_be_ours() {
    let with = |exact: &str, regex: &str| {
        verifier(Tokens {
            audience: exact.to_string(),
            audience_regex: regex.to_string(),
            ..secret()
        })
    };
    for (exact, regex, claims, expected) in [
        ("", "", json!({"aud": "anybody"}), true),
        ("us", "", json!({"aud": "us"}), true),
        ("us", "", json!({"aud": ["them", "us"]}), true),
        ("us", "", json!({"aud": "us too"}), false),
        ("us", "", json!({"aud": []}), false),
        ("us", "", json!({"aud": ""}), false),
        ("us", "", json!({}), false),
        ("", "^us-.+$", json!({"aud": "us-1"}), true),
        ("", "^us-.+$", json!({"aud": ["a", "us-1"]}), true),
        ("", "^us-.+$", json!({"aud": "not us-1"}), false),
        ("", "^us-.+$", json!({}), false),
    ] {
        let result = with(exact, regex).connection(&token(&claims), NOW_S);
        assert_eq!(result.is_ok(), expected, "{exact:?} {regex:?} {claims}");
        assert!(expected || is_invalid(result));
    }
    let number = token(&json!({"aud": 7}));
    assert!(is_invalid(with("", "").connection(&number, NOW_S)));
}

#[test]
fn the_issuer_has_to_be_the_one() {
    let with = |exact: &str, regex: &str| {
        verifier(Tokens {
            issuer: exact.to_string(),
            issuer_regex: regex.to_string(),
            ..secret()
        })
    };
    for (exact, regex, claims, expected) in [
        ("us", "", json!({"iss": "us"}), true),
        ("us", "", json!({"iss": "them"}), false),
        ("us", "", json!({}), false),
        (
            "",
            "^https://(a|b)\\.example$",
            json!({"iss": "https://b.example"}),
            true,
        ),
        (
            "",
            "^https://(a|b)\\.example$",
            json!({"iss": "https://c.example"}),
            false,
        ),
    ] {
        let result = with(exact, regex).connection(&token(&claims), NOW_S);
        assert_eq!(result.is_ok(), expected, "{exact:?} {regex:?} {claims}");
    }
}

#[test]
fn the_user_may_stand_in_another_claim() {
    let verifier = verifier(Tokens {
        user_id_claim: "uid".to_string(),
        ..secret()
    });
    let user = |claims: Value| {
        let claims = verifier.connection(&token(&claims), NOW_S);
        claims.map(|claims| claims.user)
    };
    assert_eq!(user(json!({"sub": "no", "uid": "42"})).unwrap(), "42");
    assert!(is_invalid(user(json!({"sub": "42"}))));
    assert!(is_invalid(user(json!({"uid": 42}))));
}

#[test]
fn the_previous_secret_counts_until_its_time_is_over() {
    let old = envelope(r#"{"alg":"HS256"}"#, br#"{"sub":"42"}"#, b"old");
    let with = |until_s| {
        verifier(Tokens {
            hmac_previous_secret: "old".to_string(),
            hmac_previous_until_s: until_s,
            ..secret()
        })
    };
    assert!(with(NOW_S + 1).connection(&old, NOW_S).is_ok());
    assert!(is_invalid(with(NOW_S).connection(&old, NOW_S)));
    assert!(with(0).connection(&old, NOW_S).is_ok(), "0: for ever");
    let new = token(&json!({"sub": "42"}));
    assert!(with(NOW_S).connection(&new, NOW_S).is_ok());
}

#[test]
fn a_connection_token_says_what_the_client_gets() {
    let claims = json!({
        "sub": "42", "info": {"name": "A\nB"}, "meta": {"plan": "free"},
        "channels": ["a", "b"],
        "subs": {"b": {"b64data": "eyJuIjogMX0=", "info": 7, "override": {
            "presence": {"value": false}, "force_recovery": {"value": true}}}, "c": {}},
        "something": "else",
    });
    let claims = connection(&claims).unwrap();
    assert_eq!(claims.user, "42");
    assert_eq!(claims.info, br#"{"name":"A\nB"}"#);
    assert_eq!(claims.meta, br#"{"plan":"free"}"#);
    let names: Vec<&str> = claims.subs.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names, ["a", "b", "c"]);
    let options = &claims.subs[1].1;
    assert_eq!(
        (&*options.data, &*options.info),
        (&br#"{"n":1}"#[..], &b"7"[..])
    );
    let expected = Overrides {
        presence: Some(false),
        force_recovery: Some(true),
        ..Overrides::default()
    };
    assert_eq!(options.overrides, expected);
}

#[test]
fn json_of_tokens_never_breaks_a_line() {
    let payload = b"{\"info\": {\n \"a\": [1,\r\n 2]\t}}";
    let token = envelope(r#"{"alg":"HS256"}"#, payload, SECRET.as_bytes());
    let claims = verifier(secret()).connection(&token, NOW_S).unwrap();
    assert_eq!(claims.info, br#"{"a":[1,2]}"#);
}

#[test]
fn a_token_without_a_subject_is_of_somebody_anonymous() {
    for claims in [json!({}), json!({"sub": ""}), json!({"sub": null})] {
        assert_eq!(connection(&claims).unwrap().user, "");
    }
}

#[test]
fn the_two_kinds_of_token_do_not_stand_in_for_each_other() {
    let of_channel = json!({"sub": "42", "channel": "$a"});
    assert!(is_invalid(connection(&of_channel)));
    assert!(is_invalid(subscription(&json!({"sub": "42"}))));
    assert!(is_invalid(subscription(
        &json!({"sub": "42", "channel": ""})
    )));
}

#[test]
fn a_subscription_token_says_whose_it_is_and_what_the_subscriber_gets() {
    let claims = json!({
        "sub": "42", "channel": "$a", "client": "c", "exp": NOW_S + 5, "expire_at": 0,
        "info": [1], "data": "d", "override": {"join_leave": {"value": true}},
    });
    let expected = SubscriptionClaims {
        user: "42".to_string(),
        channel: "$a".to_string(),
        client: "c".to_string(),
        expire_at: None,
        info: b"[1]".to_vec(),
        data: b"\"d\"".to_vec(),
        overrides: Overrides {
            join_leave: Some(true),
            ..Overrides::default()
        },
    };
    assert_eq!(subscription(&claims), Ok(expected));
}

#[test]
fn subscription_tokens_may_have_keys_of_their_own() {
    let settings = Settings {
        tokens: secret(),
        subscription_tokens: Some(Tokens {
            hmac_secret: "another".to_string(),
            ..Tokens::default()
        }),
        ..Settings::default()
    };
    let verifier = Verifier::new(&settings).unwrap();
    let claims = br#"{"sub":"42","channel":"$a"}"#;
    let with = |secret: &[u8]| envelope(r#"{"alg":"HS256"}"#, claims, secret);
    assert!(verifier.subscription(&with(b"another"), NOW_S).is_ok());
    assert!(is_invalid(
        verifier.subscription(&with(SECRET.as_bytes()), NOW_S)
    ));
    assert!(
        verifier
            .connection(&token(&json!({"sub": "42"})), NOW_S)
            .is_ok()
    );
}

#[test]
fn a_key_that_is_not_known_yet_is_asked_for_at_a_bounded_rate() {
    let token = text(&vectors()["tokens"]["ES256"]);
    let mut verifier = verifier(jwks());
    assert_eq!(
        verifier.connection(&token, NOW_S),
        Err(TokenError::UnknownKey)
    );
    assert!(verifier.take_keys(&key_sets(&["p256"]), NOW_S));
    assert!(
        is_invalid(verifier.connection(&token, NOW_S + 9)),
        "it has just been looked for"
    );
    let later = NOW_S + 10;
    assert_eq!(
        verifier.connection(&token, later),
        Err(TokenError::UnknownKey)
    );
    assert!(verifier.take_keys(&key_sets(&[]), later));
    assert!(verifier.connection(&token, later).is_ok());
}

#[test]
fn a_key_that_is_published_no_more_counts_no_more() {
    let token = text(&vectors()["tokens"]["ES256"]);
    let mut verifier = verifier(jwks());
    verifier.take_keys(&key_sets(&[]), NOW_S);
    assert!(verifier.connection(&token, NOW_S).is_ok());
    verifier.take_keys(&key_sets(&["p256"]), NOW_S + 1);
    assert!(is_invalid(verifier.connection(&token, NOW_S + 1)));
}

#[test]
fn published_keys_outlast_an_outage_of_their_url_but_not_for_ever() {
    let token = text(&vectors()["tokens"]["ES256"]);
    let mut verifier = verifier(jwks());
    verifier.take_keys(&key_sets(&[]), NOW_S);
    assert!(!verifier.take_keys(b"{}", NOW_S + 100));
    assert!(!verifier.take_keys(b"<html>", NOW_S + 100));
    assert!(!verifier.take_keys(format!(r#"{{"{URL}": []}}"#).as_bytes(), NOW_S + 100));
    assert!(verifier.connection(&token, NOW_S + 999).is_ok());
    let stale = verifier.connection(&token, NOW_S + 1000);
    assert_eq!(stale, Err(TokenError::UnknownKey));
}

#[test]
fn a_published_key_for_something_else_is_not_ours() {
    let token = text(&vectors()["tokens"]["RS256"]);
    let with = |name: &str, value: &str| {
        let mut key = vectors()["jwks"]["keys"][0].clone();
        key[name] = json!(value);
        let set = json!({ URL: {"keys": [7, {"kty": "XYZ"}, key]} });
        let mut verifier = verifier(jwks());
        verifier.take_keys(set.to_string().as_bytes(), NOW_S);
        verifier.connection(&token, NOW_S)
    };
    assert!(with("alg", "RS256").is_ok());
    for (name, value) in [
        ("alg", "RS512"),
        ("alg", "PS256"),
        ("alg", "RSA-OAEP"),
        ("use", "enc"),
        ("kty", "EC"),
        ("n", "AQAB"),
        ("n", "*"),
        ("e", "AA"),
    ] {
        assert!(is_invalid(with(name, value)), "{name} = {value}");
    }
}

#[test]
fn a_shared_secret_counts_beside_published_keys() {
    let verifier = verifier(Tokens {
        hmac_secret: SECRET.to_string(),
        ..jwks()
    });
    let header = r#"{"alg":"HS256","kid":"whatever"}"#;
    let token = envelope(header, br#"{"sub":"42"}"#, SECRET.as_bytes());
    assert_eq!(verifier.connection(&token, NOW_S).unwrap().user, "42");
}

#[test]
fn keys_and_rules_that_cannot_be_used_are_named() {
    let keys = &vectors()["public_keys"];
    let (rsa, p256, weak) = (
        text(&keys["rsa"]),
        text(&keys["p256"]),
        text(&keys["rsa_weak"]),
    );
    let tokens = Tokens::default;
    for (tokens, expected) in [
        (
            Tokens {
                rsa_public_key: p256.clone(),
                ..tokens()
            },
            "tokens.rsa_public_key: not an RSA",
        ),
        (
            Tokens {
                rsa_public_key: weak,
                ..tokens()
            },
            "tokens.rsa_public_key: an RSA key of 1024",
        ),
        (
            Tokens {
                ecdsa_public_key: rsa.clone(),
                ..tokens()
            },
            "tokens.ecdsa_public_key: not a",
        ),
        (
            Tokens {
                ed25519_public_key: p256,
                ..tokens()
            },
            "tokens.ed25519_public_key: not an",
        ),
        (
            Tokens {
                issuer_regex: "(".to_string(),
                ..tokens()
            },
            "tokens.issuer_regex: ",
        ),
    ] {
        let settings = Settings {
            tokens,
            ..Settings::default()
        };
        let error = Verifier::new(&settings).err().unwrap().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

proptest! {
    #[test]
    fn no_text_is_believed_or_does_harm(text in ".{0,200}") {
        prop_assert!(is_invalid(verifier(secret()).connection(&text, NOW_S)));
    }

    #[test]
    fn no_header_or_claims_do_harm(header in ".{0,80}", payload in any::<Vec<u8>>()) {
        for header in [header.as_str(), r#"{"alg":"HS256"}"#] {
            let token = envelope(header, &payload, SECRET.as_bytes());
            let _ = verifier(secret()).connection(&token, NOW_S);
        }
    }

    #[test]
    fn a_part_of_one_token_does_not_go_with_another(which in 0..3usize) {
        let one = token(&json!({"sub": "1"}));
        let two = envelope(r#"{"alg":"HS256","kid":"b"}"#, br#"{"sub":"2"}"#, SECRET.as_bytes());
        let mut parts: Vec<&str> = one.split('.').collect();
        parts[which] = two.split('.').nth(which).unwrap();
        prop_assert!(is_invalid(verifier(secret()).connection(&parts.join("."), NOW_S)));
    }

    #[test]
    fn any_claims_survive_the_way(user in ".{0,40}", name in ".{0,40}", at in 1..1u64 << 52) {
        let claims = json!({"sub": user, "info": {"name": name}, "expire_at": at});
        let claims = connection(&claims).unwrap();
        prop_assert_eq!(&claims.user, &user);
        prop_assert_eq!(claims.expire_at, Some(at));
        let info: Value = serde_json::from_slice(&claims.info).unwrap();
        prop_assert_eq!(info["name"].as_str(), Some(&*name));
    }

    #[test]
    fn no_key_set_does_harm(body in any::<Vec<u8>>()) {
        verifier(jwks()).take_keys(&body, NOW_S);
    }
}

proptest! {
    // Each looks at seven signatures, most of them slow without optimisation.
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn a_changed_token_is_not_believed(at in any::<prop::sample::Index>(), with in "[!-~]") {
        let vectors = vectors();
        for (algorithm, key) in ALGORITHMS {
            let good = text(&vectors["tokens"][algorithm]);
            let at = at.index(good.len());
            let mut bad = good.clone();
            bad.replace_range(at..=at, &with);
            if bad != good {
                let verifier = verifier(tokens_with(key, text(&vectors["public_keys"][key])));
                prop_assert!(is_invalid(verifier.connection(&bad, NOW_S)), "{algorithm} {bad}");
            }
        }
    }
}
