//! Lines of configuration that raise the limits of proxies and load balancers.

/// Lines for a product; the first says where they go.
struct Recipe {
    id: &'static str,
    lines: &'static [&'static str],
}

const RECIPES: &[Recipe] = &[
    Recipe {
        id: "nginx",
        lines: &["# in the location of the WebSocket", "proxy_read_timeout 1h;", "proxy_send_timeout 1h;"],
    },
    Recipe {
        id: "ingress-nginx",
        lines: &[
            "# metadata.annotations of the Ingress",
            "nginx.ingress.kubernetes.io/proxy-read-timeout: \"3600\"",
            "nginx.ingress.kubernetes.io/proxy-send-timeout: \"3600\"",
        ],
    },
    Recipe { id: "haproxy", lines: &["# in defaults, or in the backend", "timeout tunnel 1h"] },
    Recipe { id: "haproxy-debian", lines: &["# in defaults, or in the backend", "timeout tunnel 1h"] },
    Recipe {
        id: "envoy",
        lines: &[
            "# in the HttpConnectionManager; 0s turns it off",
            "stream_idle_timeout: 3600s",
            "# in the route, if it has one of its own",
            "idle_timeout: 3600s",
        ],
    },
    Recipe { id: "apache", lines: &["# in the VirtualHost", "ProxyTimeout 3600"] },
    Recipe {
        id: "caddy",
        lines: &[
            "# in the Caddyfile, if it sets one of them; stream_timeout needs Caddy 2.7",
            "reverse_proxy localhost:3000 {",
            "\tstream_timeout 24h",
            "\ttransport http {",
            "\t\tread_timeout 24h",
            "\t}",
            "}",
        ],
    },
    Recipe { id: "squid", lines: &["# in squid.conf", "read_timeout 1 hour"] },
    Recipe {
        id: "aws-alb",
        lines: &[
            "# 1 to 4000 seconds",
            "aws elbv2 modify-load-balancer-attributes --load-balancer-arn ARN --attributes Key=idle_timeout.timeout_seconds,Value=3600",
        ],
    },
    Recipe {
        id: "aws-nlb",
        lines: &[
            "# 60 to 6000 seconds",
            "aws elbv2 modify-listener-attributes --listener-arn ARN --attributes Key=tcp.idle_timeout.seconds,Value=3600",
        ],
    },
    Recipe {
        id: "azure-load-balancer",
        lines: &[
            "# minutes",
            "az network lb rule update --resource-group GROUP --lb-name BALANCER --name RULE --idle-timeout 30 --enable-tcp-reset true",
        ],
    },
    Recipe {
        id: "azure-application-gateway",
        lines: &[
            "# seconds",
            "az network application-gateway http-settings update --resource-group GROUP --gateway-name GATEWAY --name SETTINGS --timeout 3600",
        ],
    },
    Recipe {
        id: "google-cloud-load-balancer",
        lines: &["# 24 hours", "gcloud compute backend-services update SERVICE --global --timeout=86400s"],
    },
    Recipe {
        id: "google-cloud-run",
        lines: &["# 60 minutes, the most", "gcloud run services update SERVICE --timeout=3600"],
    },
    Recipe {
        id: "linux-conntrack",
        lines: &["# sysctl", "net.netfilter.nf_conntrack_tcp_timeout_established = 432000"],
    },
];

/// Returns the lines for a product; none if its limit cannot be set by lines.
pub(crate) fn lines(id: &str) -> &'static [&'static str] {
    RECIPES.iter().find(|recipe| recipe.id == id).map_or(&[], |recipe| recipe.lines)
}
