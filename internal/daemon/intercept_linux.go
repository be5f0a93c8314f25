package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"path"
	"runtime/debug"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// observed are the services whose operations are counted and logged, by their names in gRPC.
var observed = map[string]string{
	"containerd.services.snapshots.v1.Snapshots": snapshotsService,
	"containerd.services.diff.v1.Diff":           diffService,
}

// interceptors are around each request: they count and log it, put its error on one line, and contain a panic of its
// handler.
type interceptors struct {
	metrics *metrics
	log     *slog.Logger
}

func (i interceptors) options() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.UnaryInterceptor(i.unary), grpc.StreamInterceptor(i.stream)}
}

func (i interceptors) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (response any, err error) {
	err = i.around(ctx, info.FullMethod, func() error {
		response, err = handle(ctx, request)
		return err
	})
	return response, err
}

func (i interceptors) stream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	return i.around(stream.Context(), info.FullMethod, func() error { return handle(server, stream) })
}

func (i interceptors) around(ctx context.Context, method string, handle func() error) error {
	handle = i.contained(method, onOneLine(handle))
	service, ok := observed[strings.TrimPrefix(path.Dir(method), "/")]
	if !ok {
		return handle()
	}
	operation := snakeCase(path.Base(method))
	end := i.metrics.begin(service, operation)
	err := handle()
	end(err)
	level := slog.LevelDebug
	if code := status.Code(err); code == codes.Unknown || code == codes.Internal || code == codes.DataLoss {
		level = slog.LevelError
	}
	i.log.Log(ctx, level, "request", "service", service, "operation", operation, "outcome", outcome(err), "error", err)
	return err
}

// onOneLine makes the message of an error that joins several one line: clients print it after words of their own.
func onOneLine(f func() error) func() error {
	return func() error {
		err := f()
		s, ok := status.FromError(err)
		if err == nil || !ok || !strings.Contains(s.Message(), "\n") {
			return err
		}
		p := s.Proto()
		p.Message = strings.Join(strings.FieldsFunc(p.Message, func(r rune) bool { return r == '\n' }), "; ")
		return status.ErrorProto(p)
	}
}

// contained makes a panic of f an error.
func (i interceptors) contained(method string, f func() error) func() error {
	return func() (err error) {
		defer func() {
			if reason := recover(); reason != nil {
				i.log.Error("a request caused a panic", "method", method, "panic", reason, "stack", string(debug.Stack()))
				err = status.Error(codes.Internal, fmt.Sprintf("internal error in %s, described in the log of cowshed: %v", method, reason))
			}
		}()
		return f()
	}
}
