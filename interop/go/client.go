// The consumer's side of the wire, with the habits of the original Go client (protocol text,
// section 4): one message in flight; the nonce that came is echoed; every NACK is UNAVAILABLE;
// unknown operations are acknowledged; a DELETE without a resource is refused; a ping every 20 s,
// also without a stream; no reconnect.

package main

import (
	"context"
	"crypto/tls"
	"time"

	"github.com/golang/protobuf/ptypes"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

const pingInterval = 20 * time.Second

// observer hears of every change; an error makes the answer a NACK.
type observer interface {
	OnCreate(*FederatedService) error
	OnUpdate(*FederatedService) error
	OnDelete(*FederatedService) error
}

// watch subscribes and answers until the stream or the context ends.
func watch(ctx context.Context, address string, config *tls.Config, url string, to observer) error {
	connection, err := grpc.Dial(address,
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingInterval, Timeout: pingInterval, PermitWithoutStream: true}),
	)
	if err != nil {
		return err
	}
	defer connection.Close()
	description := &grpc.StreamDesc{StreamName: "EstablishStream", ServerStreams: true, ClientStreams: true}
	stream, err := connection.NewStream(ctx, description, "/"+serviceV1+"/EstablishStream")
	if err != nil {
		return err
	}
	request := &StreamRequest{ResourceUrl: url}
	for {
		if err := stream.SendMsg(request); err != nil {
			return err
		}
		var change StreamResponse
		if err := stream.RecvMsg(&change); err != nil {
			return err
		}
		tellUnknown(change.XXX_unrecognized)
		request.ResponseNonce = change.Nonce
		request.Status = &status.Status{}
		if err := tell(to, &change); err != nil {
			request.Status = &status.Status{Code: int32(code.Code_UNAVAILABLE), Message: err.Error()}
		}
	}
}

// tell decodes the resource and hands it to the observer.
func tell(to observer, change *StreamResponse) error {
	call, known := map[int32]func(*FederatedService) error{
		opCreate: to.OnCreate, opUpdate: to.OnUpdate, opDelete: to.OnDelete,
	}[change.Operation]
	if !known {
		event("unknown-operation", fields{"operation": change.Operation})
		return nil
	}
	var service FederatedService
	if err := ptypes.UnmarshalAny(change.Resource, &service); err != nil {
		event("undecodable", fields{"operation": change.Operation, "error": err.Error()})
		return err
	}
	return call(&service)
}
