package processors;

import io.envoyproxy.envoy.service.ext_proc.v3.ExternalProcessorGrpc.ExternalProcessorImplBase;
import io.envoyproxy.envoy.service.ext_proc.v3.ProcessingRequest;
import io.envoyproxy.envoy.service.ext_proc.v3.ProcessingResponse;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ServerCallStreamObserver;
import io.grpc.stub.StreamObserver;
import java.util.function.Supplier;
import java.util.logging.Level;
import java.util.logging.Logger;

/** The gRPC service, with a new processor for each exchange. */
final class Service extends ExternalProcessorImplBase {
  private static final Logger LOG = Logger.getLogger("processors");
  private final Supplier<Processor> newProcessor;

  Service(Supplier<Processor> newProcessor) {
    this.newProcessor = newProcessor;
  }

  @Override
  public StreamObserver<ProcessingRequest> process(StreamObserver<ProcessingResponse> replies) {
    var call = (ServerCallStreamObserver<ProcessingResponse>) replies;
    return new Messages(call, new Exchange(newProcessor.get()));
  }

  /** The messages of one HTTP exchange. The next one is asked for when the replies have left. */
  private static final class Messages implements StreamObserver<ProcessingRequest> {
    private final ServerCallStreamObserver<ProcessingResponse> call;
    private final Exchange exchange;
    private boolean waiting = true;
    private boolean failed;

    Messages(ServerCallStreamObserver<ProcessingResponse> call, Exchange exchange) {
      this.call = call;
      this.exchange = exchange;
      call.disableAutoRequest();
      call.setOnReadyHandler(this::next);
    }

    private void next() {
      if (waiting && call.isReady()) {
        waiting = false;
        call.request(1);
      }
    }

    @Override
    public void onNext(ProcessingRequest message) {
      try {
        exchange.answer(message).forEach(call::onNext);
        waiting = true;
        next();
      } catch (RuntimeException error) {
        LOG.log(Level.WARNING, "exchange failed", error);
        failed = true;
        var known = error instanceof StatusRuntimeException;
        call.onError(known ? error : Status.UNKNOWN.withDescription(error.getMessage()).asException());
      }
    }

    // Envoy ends a stream by half-close, by cancelling or by a reset: all are normal.
    @Override
    public void onCompleted() {
      if (!failed) {
        call.onCompleted();
      }
    }

    @Override
    public void onError(Throwable cancelled) {}
  }
}
