// uWebSockets as its author means it to be used: a C++ program. `--listen ADDRESS --interval SECONDS`, as all peers.
//
// Its sources come with the crate libuwebsockets-sys, which `xtask/src/install.rs` fetches and compiles with this file.

#include <algorithm>
#include <cstdlib>
#include <string>
#include <string_view>

#include "App.h"

namespace {

struct Nothing {};
using Socket = uWS::WebSocket<false, true, Nothing>;

std::string value(int count, char **arguments, std::string_view name) {
    for (int at = 1; at + 1 < count; at++) {
        if (arguments[at] == name) return arguments[at + 1];
    }
    std::exit(2);
}

} // namespace

int main(int count, char **arguments) {
    std::string const address = value(count, arguments, "--listen");
    auto const colon = address.rfind(':');
    int const interval = std::atoi(value(count, arguments, "--interval").c_str());

    auto const behavior = [interval] {
        uWS::App::WebSocketBehavior<Nothing> behavior;
        behavior.compression = uWS::DISABLED;
        // It takes 0 or at least 8 seconds, and sends a Ping half of it apart.
        behavior.idleTimeout = static_cast<unsigned short>(std::max(8, (2 * interval + 3) / 4 * 4));
        behavior.sendPingsAutomatically = true;
        behavior.maxPayloadLength = 16 * 1024 * 1024;
        behavior.maxBackpressure = 64 * 1024 * 1024;
        return behavior;
    };

    uWS::App app;
    auto echo = behavior();
    echo.message = [](Socket *socket, std::string_view message, uWS::OpCode code) { socket->send(message, code); };
    app.ws<Nothing>("/echo", std::move(echo));

    auto room = behavior();
    room.open = [](Socket *socket) { socket->subscribe("room"); };
    room.message = [&app](Socket *, std::string_view message, uWS::OpCode code) { app.publish("room", message, code); };
    app.ws<Nothing>("/broadcast", std::move(room));

    app.listen(address.substr(0, colon), std::atoi(address.c_str() + colon + 1), [](auto *socket) {
        if (!socket) std::exit(1);
    });
    app.run();
}
