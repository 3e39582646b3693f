# Rails Action Cable with its defaults (Origin has to name this host), served by puma.

require "action_cable"
require "json"
require "logger"
require "puma"
require "puma/configuration"
require "puma/launcher"

def record(line)
  File.write(ENV["RECORD"], "#{JSON.generate({ **line, generation: ENV["GENERATION"] })}\n", mode: "a")
end

class Connection < ActionCable::Connection::Base
  def connect
    reject_unauthorized_connection if request.params["who"] == "nobody"
  end
end

class EchoChannel < ActionCable::Channel::Base
  def subscribed
    record({ subscribed: "EchoChannel" })
  end

  def echo(data)
    transmit({ text: data["text"] })
  end
end

class SecretChannel < ActionCable::Channel::Base
  def subscribed
    reject
  end
end

class NewsChannel < ActionCable::Channel::Base
  def subscribed
    record({ subscribed: "NewsChannel" })
  end

  periodically(every: 0.05) { transmit({ generation: ENV["GENERATION"] }) }

  def order(data)
    record({ order: data["id"] })
  end
end

ActionCable.server.config.tap do |config|
  config.cable = { "adapter" => "async" }
  config.connection_class = -> { Connection }
  config.allow_same_origin_as_host = true
  config.logger = Logger.new($stderr)
end

page = ->(_) { [200, { "Content-Type" => "text/plain" }, ["words " * 1000]] }
app = ->(env) { env["PATH_INFO"] == "/cable" ? ActionCable.server.call(env) : page.(env) }
configuration = Puma::Configuration.new do |user|
  user.app(app)
  user.bind("tcp://127.0.0.1:#{ENV["PORT"]}")
  user.threads(1, 4)
end
Puma::Launcher.new(configuration).run
