//! Which products on the way the fields of a response give away.

use super::report::{Field, Product};

/// How a field gives a product away.
enum Sign {
    /// The field is there.
    Name(&'static str),
    /// The field's value contains this, whatever the capitals.
    Value(&'static str, &'static str),
    /// The field's name begins so.
    Prefix(&'static str),
}

use Sign::{Name, Prefix, Value};

/// Products and their signs. One product may have several.
const SIGNS: &[(&str, Sign)] = &[
    ("cloudflare", Name("cf-ray")),
    ("cloudflare", Value("server", "cloudflare")),
    ("aws-alb", Value("server", "awselb")),
    ("aws-alb", Value("set-cookie", "awsalb")),
    ("aws-cloudfront", Prefix("x-amz-cf-")),
    ("aws-api-gateway", Name("x-amzn-requestid")),
    ("aws-api-gateway", Name("x-amz-apigw-id")),
    ("heroku", Value("via", "vegur")),
    ("heroku", Value("via", "heroku-router")),
    ("heroku", Value("server", "heroku")),
    ("google-load-balancer", Value("via", "google")),
    ("google-frontend", Value("server", "google frontend")),
    ("azure-front-door", Name("x-azure-ref")),
    ("azure-app-service", Value("set-cookie", "arraffinity")),
    ("azure-application-gateway", Value("server", "microsoft-azure-application-gateway")),
    ("azure-application-gateway", Value("set-cookie", "applicationgatewayaffinity")),
    ("fastly", Name("x-served-by")),
    ("fastly", Prefix("x-fastly-")),
    ("akamai", Value("server", "akamaighost")),
    ("fly", Name("fly-request-id")),
    ("fly", Value("server", "fly/")),
    ("render", Name("x-render-origin-server")),
    ("railway", Name("x-railway-request-id")),
    ("railway", Value("server", "railway-edge")),
    ("vercel", Name("x-vercel-id")),
    ("netlify", Name("x-nf-request-id")),
    ("ngrok", Prefix("ngrok-")),
    ("envoy", Value("server", "envoy")),
    ("envoy", Name("x-envoy-upstream-service-time")),
    ("istio", Value("server", "istio-envoy")),
    ("nginx", Value("server", "nginx")),
    ("openresty", Value("server", "openresty")),
    ("caddy", Value("server", "caddy")),
    ("caddy", Value("via", "caddy")),
    ("apache", Value("server", "apache")),
    ("iis", Value("server", "microsoft-iis")),
    ("traefik", Value("server", "traefik")),
    ("haproxy", Value("server", "haproxy")),
    ("kong", Value("via", "kong")),
    ("kong", Value("server", "kong")),
    ("varnish", Value("via", "varnish")),
    ("squid", Value("via", "squid")),
    ("litespeed", Value("server", "litespeed")),
    ("cowboy", Value("server", "cowboy")),
    ("jetty", Value("server", "jetty")),
    ("mainstay", Value("server", "mainstay")),
];

/// Returns the products that these fields give away, each once, in the order of the table: what is nearest to the client first,
/// as far as that is known.
pub(super) fn find(fields: &[Field]) -> Vec<Product> {
    let mut found: Vec<Product> = Vec::new();
    for (name, sign) in SIGNS {
        if found.iter().any(|product| product.name == *name) {
            continue;
        }
        if let Some(field) = fields.iter().find(|field| sign.is_in(field)) {
            let evidence = format!("{}: {}", field.name.to_ascii_lowercase(), field.value);
            found.push(Product { name, evidence });
        }
    }
    found
}

impl Sign {
    fn is_in(&self, field: &Field) -> bool {
        let name = field.name.to_ascii_lowercase();
        match self {
            Name(wanted) => name == *wanted,
            Value(wanted, part) => name == *wanted && field.value.to_ascii_lowercase().contains(part),
            Prefix(wanted) => name.starts_with(wanted),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_give_products_away() {
        let check = |name: &str, value: &str, expected: &[&str]| {
            let field = Field { name: name.to_owned(), value: value.to_owned() };
            let found: Vec<_> = find(&[field]).into_iter().map(|product| product.name).collect();
            assert_eq!(found, expected, "{name}: {value}");
        };
        check("Server", "nginx/1.25.3", &["nginx"]);
        check("CF-RAY", "8b2", &["cloudflare"]);
        check("Via", "1.1 vegur", &["heroku"]);
        check("Set-Cookie", "AWSALB=...", &["aws-alb"]);
        check("server", "Cowboy", &["cowboy"]);
        check("Server", "unknown/1", &[]);
    }
}
