package processors;

import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import java.net.InetSocketAddress;
import java.util.Map;
import java.util.function.Supplier;

/** External processors for Envoy, on the raw protocol. */
public final class Main {
  private static final Map<String, Supplier<Processor>> PROCESSORS =
      Map.of(
          "add-header", Processors.AddHeader::new,
          "rewrite-json", Processors.RewriteJson::new,
          "redact", Processors.Redact::new);

  public static void main(String[] args) throws Exception {
    if (args.length < 1 || !PROCESSORS.containsKey(args[0])) {
      System.err.println("usage: processors add-header|rewrite-json|redact [ADDRESS]");
      System.exit(2);
    }
    var address = args.length > 1 ? args[1] : "127.0.0.1:50051";
    var colon = address.lastIndexOf(':');
    var host = address.substring(0, colon);
    var port = Integer.parseInt(address.substring(colon + 1));
    var server =
        NettyServerBuilder.forAddress(new InetSocketAddress(host, port))
            .addService(new Service(PROCESSORS.get(args[0])))
            .build()
            .start();
    System.out.println("listening on " + host + ":" + server.getPort());
    server.awaitTermination();
  }
}
