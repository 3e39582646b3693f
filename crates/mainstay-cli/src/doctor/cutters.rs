//! What is known to end WebSockets: products, platforms and networks, with their own figures and where those are written.
//!
//! A figure without a source is not here. [`Basis`] says whether the vendor states it, users report it, or it was measured.
//! The table of `docs/DOCTOR.md` is compared with this one by a test.

use std::time::Duration;

use super::report::Product;

/// Something that ends connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cutter {
    /// Stable.
    pub(crate) id: &'static str,
    /// What the fields of a response may show: values of [`Product::name`]. Variants of one product share the first.
    pub(crate) families: &'static [&'static str],
    pub(crate) name: &'static str,
    pub(crate) place: Place,
    /// `None`: it has no limit for silence, or none is known.
    pub(crate) idle: Option<Idle>,
    /// The age at which it ends a busy connection, too.
    pub(crate) lifetime: Option<Figure>,
    /// The largest message that it passes on, in bytes.
    pub(crate) message: Option<u64>,
    pub(crate) cut: Cut,
    /// Whether it leaves a field in the response, so that its absence from the response speaks against it.
    pub(crate) signs: Signs,
    /// How to change the limit, or what helps where it cannot be changed.
    pub(crate) remedy: &'static str,
    pub(crate) basis: Basis,
    pub(crate) source: &'static str,
}

/// Where on the path it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A program that operators run: near and far.
    Proxy,
    /// A service between the clients and the operator's machines: never on loopback or in a private network.
    Cloud,
    /// The network: it forwards packets and reads no HTTP.
    Network,
    /// The server's own library.
    Server,
}

/// An idle limit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Idle {
    pub(crate) limit: Figure,
    pub(crate) reset_by: ResetBy,
}

/// The figure of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Figure {
    /// It has this value unless an operator changes it.
    Default(Duration),
    /// It cannot be changed.
    Fixed(Duration),
    /// There is no value of its own: the operator sets one.
    Set,
    /// It differs from one network to the next.
    Between(Duration, Duration),
}

impl Figure {
    /// Returns whether a cut after this time fits the figure, within what a measurement may be off.
    pub(crate) fn fits(self, after: Duration) -> bool {
        match self {
            Self::Default(limit) | Self::Fixed(limit) => limit.abs_diff(after) <= slack(limit),
            Self::Set => false,
            Self::Between(low, high) => low.saturating_sub(slack(low)) <= after && after <= high,
        }
    }

    /// Returns whether an operator can give it another value.
    pub(crate) fn can_be_set(self) -> bool {
        matches!(self, Self::Default(_) | Self::Set)
    }
}

/// How far a measured limit may be from the true one: 5 %, at least 1.5 s.
fn slack(limit: Duration) -> Duration {
    (limit / 20).max(Duration::from_millis(1500))
}

/// What keeps a silent connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResetBy {
    /// A byte in either direction.
    Any,
    /// Only bytes from the server.
    Server,
    /// Only bytes from the client.
    Client,
    /// Each direction has its own timer.
    Both,
}

/// How the cut looks at the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// TCP ends (FIN or RST), without a Close.
    Tcp,
    /// It speaks WebSocket, and a Close comes first.
    Close,
    /// Nothing arrives any more; what is sent later may be answered by a reset.
    Silent,
    /// It differs, or is not known.
    Unknown,
}

/// Whether the response shows the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signs {
    /// It usually adds a field.
    Field,
    /// It adds none.
    None,
}

/// What a figure rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Basis {
    /// The vendor's documentation says so.
    Vendor,
    /// Users report it; the vendor gives no figure.
    Users,
    /// `cargo xtask test proxies` shows it with the real program.
    Measured,
    /// Studies measured many networks; the bounds are rough.
    Studies,
}

/// All that is known. Products of the path first.
pub(crate) const CUTTERS: &[Cutter] = &[
    Cutter {
        id: "nginx",
        families: &["nginx", "openresty"],
        name: "nginx",
        place: Place::Proxy,
        idle: idle(Figure::Default(secs(60)), ResetBy::Any),
        cut: Cut::Tcp,
        remedy: "proxy_read_timeout and proxy_send_timeout",
        source: "https://nginx.org/en/docs/http/websocket.html",
        ..PRODUCT
    },
    Cutter {
        id: "ingress-nginx",
        families: &["ingress-nginx"],
        name: "ingress-nginx (Kubernetes)",
        place: Place::Proxy,
        idle: idle(Figure::Default(secs(60)), ResetBy::Any),
        cut: Cut::Tcp,
        signs: Signs::None,
        remedy: "the annotations proxy-read-timeout and proxy-send-timeout of the Ingress",
        source: "https://kubernetes.github.io/ingress-nginx/user-guide/miscellaneous/#websockets",
        ..PRODUCT
    },
    Cutter {
        id: "haproxy",
        families: &["haproxy"],
        name: "HAProxy",
        place: Place::Proxy,
        idle: idle(Figure::Set, ResetBy::Any),
        cut: Cut::Tcp,
        signs: Signs::None,
        remedy: "timeout tunnel; without it the shorter of timeout client and timeout server",
        source: "https://docs.haproxy.org/2.8/configuration.html#4.2-timeout%20tunnel",
        ..PRODUCT
    },
    Cutter {
        id: "haproxy-debian",
        families: &["haproxy"],
        name: "HAProxy with Debian's configuration",
        place: Place::Proxy,
        idle: idle(Figure::Default(secs(50)), ResetBy::Any),
        cut: Cut::Tcp,
        signs: Signs::None,
        remedy: "timeout tunnel, which takes the place of timeout client 50000 and timeout server 50000",
        source: "https://sources.debian.org/src/haproxy/unstable/debian/haproxy.cfg/",
        ..PRODUCT
    },
    Cutter {
        id: "envoy",
        families: &["envoy", "istio"],
        name: "Envoy",
        place: Place::Proxy,
        idle: idle(Figure::Default(secs(300)), ResetBy::Any),
        lifetime: Some(Figure::Set),
        // TCP ends `delayed_close_timeout` (1 s) after the limit; until then a byte gets a reset, or no answer.
        cut: Cut::Unknown,
        remedy: "stream_idle_timeout of the connection manager, or idle_timeout of the route; for the age max_stream_duration",
        source: "https://www.envoyproxy.io/docs/envoy/latest/faq/configuration/timeouts",
        ..PRODUCT
    },
    Cutter {
        id: "apache",
        families: &["apache"],
        name: "Apache httpd",
        place: Place::Proxy,
        idle: idle(Figure::Default(secs(60)), ResetBy::Any),
        cut: Cut::Tcp,
        // mod_proxy_wstunnel passes the backend's fields on, and adds none.
        signs: Signs::None,
        remedy: "ProxyTimeout; the limit is the longer of it and Timeout, which is 60 s",
        source: "https://httpd.apache.org/docs/2.4/mod/mod_proxy.html#proxytimeout",
        ..PRODUCT
    },
    Cutter {
        id: "caddy",
        families: &["caddy"],
        name: "Caddy",
        place: Place::Proxy,
        idle: idle(Figure::Set, ResetBy::Server),
        lifetime: Some(Figure::Set),
        cut: Cut::Tcp,
        remedy: "read_timeout of its transport; for the age stream_timeout of reverse_proxy; both are off by default",
        source: "https://caddyserver.com/docs/caddyfile/directives/reverse_proxy#streaming",
        ..PRODUCT
    },
    Cutter {
        id: "traefik",
        families: &["traefik"],
        name: "Traefik",
        place: Place::Proxy,
        idle: None,
        signs: Signs::None,
        remedy: "nothing: its respondingTimeouts do not reach an open WebSocket",
        basis: Basis::Measured,
        source: "https://doc.traefik.io/traefik/routing/entrypoints/#respondingtimeouts",
        ..PRODUCT
    },
    Cutter {
        id: "squid",
        families: &["squid"],
        name: "Squid, as a proxy of an office",
        place: Place::Network,
        idle: idle(Figure::Default(secs(15 * 60)), ResetBy::Any),
        lifetime: Some(Figure::Default(secs(24 * 3600))),
        cut: Cut::Tcp,
        remedy: "read_timeout; for the age client_lifetime",
        source: "https://www.squid-cache.org/Doc/config/read_timeout/",
        ..PRODUCT
    },
    Cutter {
        id: "aws-alb",
        families: &["aws-alb"],
        name: "AWS Application Load Balancer",
        idle: idle(Figure::Default(secs(60)), ResetBy::Any),
        cut: Cut::Tcp,
        signs: Signs::None,
        remedy: "the attribute idle_timeout.timeout_seconds, 1 to 4000",
        source: "https://docs.aws.amazon.com/elasticloadbalancing/latest/application/edit-load-balancer-attributes.html",
        ..PRODUCT
    },
    Cutter {
        id: "aws-nlb",
        families: &["aws-nlb"],
        name: "AWS Network Load Balancer",
        idle: idle(Figure::Default(secs(350)), ResetBy::Any),
        cut: Cut::Silent,
        signs: Signs::None,
        remedy: "the listener's attribute tcp.idle_timeout.seconds, 60 to 6000",
        source: "https://aws.amazon.com/blogs/networking-and-content-delivery/introducing-nlb-tcp-configurable-idle-timeout/",
        ..PRODUCT
    },
    Cutter {
        id: "aws-network-firewall",
        families: &["aws-network-firewall"],
        name: "AWS Network Firewall",
        place: Place::Network,
        idle: idle(Figure::Default(secs(350)), ResetBy::Any),
        cut: Cut::Silent,
        signs: Signs::None,
        remedy: "TcpIdleTimeoutSeconds of the firewall policy, 60 to 6000",
        source: "https://docs.aws.amazon.com/network-firewall/latest/APIReference/API_FlowTimeouts.html",
        ..PRODUCT
    },
    Cutter {
        id: "aws-api-gateway",
        families: &["aws-api-gateway"],
        name: "AWS API Gateway",
        idle: idle(Figure::Fixed(secs(600)), ResetBy::Any),
        lifetime: Some(Figure::Fixed(secs(2 * 3600))),
        message: Some(128 * 1024),
        cut: Cut::Close,
        remedy: "nothing: the quotas cannot be raised; heartbeats keep it from being idle, sessions outlive the 2 hours",
        source: "https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-execution-service-websocket-limits-table.html",
        ..PRODUCT
    },
    Cutter {
        id: "aws-cloudfront",
        families: &["aws-cloudfront"],
        name: "AWS CloudFront",
        idle: idle(Figure::Fixed(secs(600)), ResetBy::Server),
        cut: Cut::Unknown,
        remedy: "nothing: the quota cannot be raised; the server has to send something",
        source: "https://docs.aws.amazon.com/AmazonCloudFront/latest/DeveloperGuide/cloudfront-limits.html",
        ..PRODUCT
    },
    Cutter {
        id: "heroku",
        families: &["heroku"],
        name: "Heroku's router",
        idle: idle(Figure::Fixed(secs(55)), ResetBy::Any),
        cut: Cut::Tcp,
        remedy: "nothing: it cannot be changed; a heartbeat below 55 s",
        source: "https://devcenter.heroku.com/articles/http-routing#timeouts",
        ..PRODUCT
    },
    Cutter {
        id: "cloudflare",
        families: &["cloudflare"],
        name: "Cloudflare",
        idle: idle(Figure::Fixed(secs(100)), ResetBy::Any),
        cut: Cut::Tcp,
        remedy: "nothing but on its Enterprise plan: a heartbeat; it also ends connections when it restarts its servers",
        basis: Basis::Users,
        source: "https://github.com/buildbot/buildbot/issues/4078",
        ..PRODUCT
    },
    Cutter {
        id: "cloudflare-gateway",
        families: &["cloudflare-gateway"],
        name: "Cloudflare Gateway (Zero Trust), as a proxy of an office",
        place: Place::Network,
        idle: idle(Figure::Fixed(secs(270)), ResetBy::Any),
        cut: Cut::Tcp,
        signs: Signs::None,
        remedy: "nothing: TCP keepalives do not help, a heartbeat does",
        source: "https://github.com/cloudflare/cloudflare-docs/pull/3405",
        ..PRODUCT
    },
    Cutter {
        id: "azure-load-balancer",
        families: &["azure-load-balancer"],
        name: "Azure Load Balancer",
        idle: idle(Figure::Default(secs(240)), ResetBy::Any),
        cut: Cut::Silent,
        signs: Signs::None,
        remedy: "the rule's idle timeout, 4 to 100 minutes; with TCP reset both ends learn that it cut",
        source: "https://learn.microsoft.com/azure/load-balancer/load-balancer-tcp-reset",
        ..PRODUCT
    },
    Cutter {
        id: "azure-app-service",
        families: &["azure-app-service"],
        name: "Azure App Service",
        idle: idle(Figure::Fixed(secs(230)), ResetBy::Any),
        cut: Cut::Unknown,
        remedy: "nothing: it cannot be changed; a heartbeat below 230 s",
        basis: Basis::Users,
        source: "https://learn.microsoft.com/en-us/answers/questions/1465927/soap-api-request-timeout-in-production-environment",
        ..PRODUCT
    },
    Cutter {
        id: "azure-application-gateway",
        families: &["azure-application-gateway"],
        name: "Azure Application Gateway",
        idle: idle(Figure::Set, ResetBy::Any),
        cut: Cut::Tcp,
        remedy: "the request timeout of its backend setting, which holds for WebSockets, too",
        source: "https://learn.microsoft.com/azure/application-gateway/application-gateway-websocket",
        ..PRODUCT
    },
    Cutter {
        id: "azure-front-door",
        families: &["azure-front-door"],
        name: "Azure Front Door",
        idle: idle(Figure::Fixed(secs(300)), ResetBy::Any),
        lifetime: Some(Figure::Fixed(secs(4 * 3600))),
        cut: Cut::Unknown,
        remedy: "nothing: it cannot be changed; a heartbeat, and sessions outlive the 4 hours",
        source: "https://learn.microsoft.com/azure/frontdoor/standard-premium/websocket",
        ..PRODUCT
    },
    Cutter {
        id: "google-cloud-load-balancer",
        families: &["google-load-balancer"],
        name: "Google Cloud's Application Load Balancer",
        idle: None,
        lifetime: Some(Figure::Default(secs(30))),
        cut: Cut::Tcp,
        remedy: "the timeout of the backend service, up to 24 hours: it is the age at which even a busy WebSocket ends",
        source: "https://cloud.google.com/load-balancing/docs/https#timeout-bes",
        ..PRODUCT
    },
    Cutter {
        id: "google-cloud-run",
        families: &["google-frontend"],
        name: "Google Cloud Run",
        idle: None,
        lifetime: Some(Figure::Default(secs(300))),
        cut: Cut::Unknown,
        remedy: "the service's request timeout, up to 60 minutes; sessions outlive it",
        source: "https://cloud.google.com/run/docs/triggering/websockets",
        ..PRODUCT
    },
    Cutter {
        id: "google-vpc",
        families: &["google-vpc"],
        name: "Google Cloud's VPC network",
        place: Place::Network,
        idle: idle(Figure::Fixed(secs(600)), ResetBy::Any),
        cut: Cut::Silent,
        signs: Signs::None,
        remedy: "nothing: it cannot be changed; TCP keepalives or a heartbeat below 10 minutes",
        source: "https://cloud.google.com/compute/docs/troubleshooting",
        ..PRODUCT
    },
    Cutter {
        id: "oracle-load-balancer",
        families: &["oracle-load-balancer"],
        name: "Oracle Cloud's Load Balancer",
        idle: idle(Figure::Default(secs(60)), ResetBy::Both),
        cut: Cut::Tcp,
        signs: Signs::None,
        remedy: "the listener's idle timeout; bytes in one direction do not count for the other",
        source: "https://docs.oracle.com/en-us/iaas/Content/Balance/Reference/connectionreuse.htm",
        ..PRODUCT
    },
    Cutter {
        id: "vercel",
        families: &["vercel"],
        name: "Vercel",
        idle: None,
        lifetime: Some(Figure::Default(secs(300))),
        cut: Cut::Unknown,
        remedy: "the function's maximum duration, as far as the plan allows; sessions outlive it",
        source: "https://vercel.com/docs/functions/websockets",
        ..PRODUCT
    },
    Cutter {
        id: "fly",
        families: &["fly"],
        name: "Fly.io",
        idle: None,
        cut: Cut::Close,
        remedy: "nothing: it has no idle limit since 2023; a machine that is stopped closes its WebSockets",
        source: "https://community.fly.io/t/tcp-idle-timeouts-restrictions-have-been-removed/15160",
        ..PRODUCT
    },
    Cutter {
        id: "render",
        families: &["render"],
        name: "Render",
        idle: None,
        cut: Cut::Unknown,
        remedy: "nothing documented: its requests pass through Cloudflare, whose limits hold",
        source: "https://render.com/docs/uptime-best-practices",
        ..PRODUCT
    },
    Cutter {
        id: "railway",
        families: &["railway"],
        name: "Railway",
        idle: None,
        cut: Cut::Unknown,
        remedy: "nothing documented for WebSockets; plain requests end after 15 minutes",
        source: "https://docs.railway.com/networking/public-networking/specs-and-limits",
        ..PRODUCT
    },
    Cutter {
        id: "wso2",
        families: &["wso2"],
        name: "WSO2 API Platform",
        idle: idle(Figure::Fixed(secs(240)), ResetBy::Any),
        lifetime: Some(Figure::Fixed(secs(15 * 60))),
        cut: Cut::Unknown,
        signs: Signs::None,
        remedy: "a data plane of one's own; a heartbeat, and sessions outlive the 15 minutes",
        source: "https://wso2.com/api-platform/docs/cloud/create-api-proxy/my-apis/websocket/quotas-and-limitations/",
        ..PRODUCT
    },
    Cutter {
        id: "kube-proxy",
        families: &["kube-proxy"],
        name: "kube-proxy (Kubernetes)",
        idle: idle(Figure::Default(secs(24 * 3600)), ResetBy::Any),
        remedy: "--conntrack-tcp-timeout-established",
        source: "https://kubernetes.io/docs/reference/command-line-tools-reference/kube-proxy/",
        ..NETWORK
    },
    Cutter {
        id: "linux-conntrack",
        families: &["linux-conntrack"],
        name: "a firewall or NAT of Linux (conntrack)",
        idle: idle(Figure::Default(secs(5 * 24 * 3600)), ResetBy::Any),
        remedy: "net.netfilter.nf_conntrack_tcp_timeout_established",
        source: "https://docs.kernel.org/networking/nf_conntrack-sysctl.html",
        ..NETWORK
    },
    Cutter {
        id: "mobile-nat",
        families: &["mobile-nat"],
        name: "the NAT or firewall of a mobile carrier",
        idle: idle(Figure::Between(secs(240), secs(30 * 60)), ResetBy::Any),
        remedy: "nothing: a heartbeat; each one wakes the phone's radio, so not more often than needed",
        basis: Basis::Studies,
        source: "https://doi.org/10.1145/2018436.2018479",
        ..NETWORK
    },
    Cutter {
        id: "home-router",
        families: &["home-router"],
        name: "the NAT of a home router",
        idle: idle(Figure::Between(secs(240), secs(2 * 3600 + 240)), ResetBy::Any),
        remedy: "nothing for most: a heartbeat; RFC 5382 asks for at least 2 hours and 4 minutes",
        basis: Basis::Studies,
        source: "https://doi.org/10.1145/1879141.1879174",
        ..NETWORK
    },
    Cutter {
        id: "cowboy",
        families: &["cowboy"],
        name: "Cowboy (Phoenix, RabbitMQ)",
        idle: idle(Figure::Default(secs(60)), ResetBy::Client),
        remedy: "idle_timeout of cowboy_websocket, timeout of the socket in Phoenix, web_stomp.ws_opts.idle_timeout in RabbitMQ; the client has to send something",
        source: "https://ninenines.eu/docs/en/cowboy/2.12/manual/cowboy_websocket/",
        ..SERVER
    },
    Cutter {
        id: "jetty",
        families: &["jetty"],
        name: "Jetty, from version 10 on",
        idle: idle(Figure::Default(secs(30)), ResetBy::Any),
        remedy: "setIdleTimeout of its WebSocket container",
        basis: Basis::Users,
        source: "https://issues.apache.org/jira/browse/AMQ-9432",
        ..SERVER
    },
    Cutter {
        id: "jetty-9",
        families: &["jetty"],
        name: "Jetty 9",
        idle: idle(Figure::Default(secs(300)), ResetBy::Any),
        remedy: "setIdleTimeout of its WebSocketPolicy",
        basis: Basis::Users,
        source: "https://stackoverflow.com/questions/50754416",
        ..SERVER
    },
];

const PRODUCT: Cutter = Cutter {
    id: "",
    families: &[],
    name: "",
    place: Place::Cloud,
    idle: None,
    lifetime: None,
    message: None,
    cut: Cut::Unknown,
    signs: Signs::Field,
    remedy: "",
    basis: Basis::Vendor,
    source: "",
};
const NETWORK: Cutter = Cutter { place: Place::Network, cut: Cut::Silent, signs: Signs::None, ..PRODUCT };
// A proxy in front of it may replace its field by the proxy's own.
const SERVER: Cutter = Cutter { place: Place::Server, cut: Cut::Close, ..PRODUCT };

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn idle(limit: Figure, reset_by: ResetBy) -> Option<Idle> {
    Some(Idle { limit, reset_by })
}

/// Returns the cutter whose largest message is one of `accepted` bytes or more, and below `refused`.
pub(crate) fn of_message_limit(accepted: u64, refused: u64) -> Option<&'static Cutter> {
    CUTTERS.iter().find(|cutter| cutter.message.is_some_and(|most| (accepted..refused).contains(&most)))
}

/// Returns the field that gives the cutter away in a response.
pub(crate) fn sign_of<'a>(cutter: &Cutter, products: &'a [Product]) -> Option<&'a Product> {
    products.iter().find(|product| cutter.families.contains(&product.name))
}

/// Returns whether a product is the end of a path, and not on the way.
pub(crate) fn is_the_end(product: &Product) -> bool {
    let mut known = CUTTERS.iter().filter(|cutter| cutter.families.contains(&product.name)).peekable();
    known.peek().is_some() && known.all(|cutter| cutter.place == Place::Server)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::Path;

    use super::super::words::{age, size};
    use super::*;

    const FROM: &str = "<!-- the table of cutters.rs from here -->\n\n";
    const TO: &str = "\n<!-- to here -->";

    fn figure(figure: Option<Figure>) -> String {
        match figure {
            None => "".into(),
            Some(Figure::Default(value)) => age(value),
            Some(Figure::Fixed(value)) => format!("{}, fixed", age(value)),
            Some(Figure::Set) => "as set".into(),
            Some(Figure::Between(low, high)) => format!("{} to {}", age(low), age(high)),
        }
    }

    fn row(cutter: &Cutter) -> String {
        let counts = cutter.idle.map_or("", |idle| match idle.reset_by {
            ResetBy::Any => "either end",
            ResetBy::Server => "the server",
            ResetBy::Client => "the client",
            ResetBy::Both => "both, each",
        });
        let cut = match cutter.cut {
            Cut::Tcp => "TCP ends",
            Cut::Close => "a Close",
            Cut::Silent => "in silence",
            Cut::Unknown => "differs",
        };
        let message =
            cutter.message.map_or_else(String::new, |bytes| format!("; messages up to {}", size(bytes)));
        let basis = match cutter.basis {
            Basis::Vendor => "documentation",
            Basis::Users => "reports of users",
            Basis::Measured => "documentation, and measured",
            Basis::Studies => "a study",
        };
        format!(
            "| {} | {} | {counts} | {} | {cut} | {}{message} | [{basis}]({}) |",
            cutter.name,
            figure(cutter.idle.map(|idle| idle.limit)),
            figure(cutter.lifetime),
            cutter.remedy,
            cutter.source
        )
    }

    fn table() -> String {
        let head = "| Product | Idle limit | Bytes that count | Limit of age | The cut | To change it | Source |\n\
                    |---|--:|---|--:|---|---|---|\n";
        head.to_owned() + &CUTTERS.iter().map(|cutter| row(cutter) + "\n").collect::<String>()
    }

    #[test]
    fn the_document_has_this_table() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/DOCTOR.md");
        let Ok(page) = std::fs::read_to_string(&path) else { panic!("no {}", path.display()) };
        let written = page.split_once(FROM).and_then(|(_, rest)| rest.split_once(TO)).map(|(table, _)| table);
        let wanted = table();
        assert!(written == Some(wanted.as_str()), "docs/DOCTOR.md needs this table:\n{wanted}");
    }

    #[test]
    fn each_cutter_has_its_own_id_a_source_and_words_for_what_helps() {
        let mut ids = HashSet::new();
        for cutter in CUTTERS {
            assert!(ids.insert(cutter.id), "{} is there twice", cutter.id);
            assert!(cutter.source.starts_with("https://"), "{}: {}", cutter.id, cutter.source);
            assert!(!cutter.name.is_empty() && !cutter.remedy.is_empty() && !cutter.families.is_empty());
        }
    }

    #[test]
    fn a_measured_limit_may_be_a_little_off_and_not_more() {
        let fits = |figure: Figure, ms: u64| figure.fits(Duration::from_millis(ms));
        assert!(fits(Figure::Default(secs(60)), 59_000) && fits(Figure::Default(secs(60)), 61_500));
        assert!(!fits(Figure::Default(secs(60)), 55_000) && !fits(Figure::Default(secs(60)), 66_000));
        assert!(fits(Figure::Between(secs(240), secs(1800)), 600_000));
        assert!(!fits(Figure::Between(secs(240), secs(1800)), 100_000));
        assert!(!fits(Figure::Set, 60_000));
    }
}
