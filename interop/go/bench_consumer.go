// The bench's consumer: like the original client, it keeps what comes in a map (its admission) and answers
// with the nonce that came.

package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"time"

	"github.com/golang/protobuf/proto"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

func runBenchConsumer(args []string) error {
	o, err := benchFlags("bench-consumer", args)
	if err != nil {
		return err
	}
	pair, pool, err := o.identity("consumer", "owner-ca")
	if err != nil {
		return err
	}
	config := &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool, ServerName: "localhost"}
	began := time.Now()
	connection, err := grpc.NewClient("passthrough:///"+o.address,
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 20 * time.Second, PermitWithoutStream: true}),
	)
	if err != nil {
		return err
	}
	defer connection.Close()
	description := &grpc.StreamDesc{StreamName: "EstablishStream", ServerStreams: true, ClientStreams: true}
	stream, err := connection.NewStream(context.Background(), description, "/"+serviceV1+"/EstablishStream")
	if err != nil {
		return err
	}
	held := make(map[string]*FederatedService, o.services)
	request := &StreamRequest{ResourceUrl: resourceURL}
	for {
		if err := stream.SendMsg(request); err != nil {
			return err
		}
		if len(held) == o.services {
			break
		}
		var change StreamResponse
		if err := stream.RecvMsg(&change); err != nil {
			return err
		}
		s := &FederatedService{}
		if err := proto.Unmarshal(change.Resource.GetValue(), s); err != nil {
			return err
		}
		held[s.Id] = s
		request.ResponseNonce, request.Status = change.Nonce, &status.Status{}
	}
	say(map[string]any{"seconds": time.Since(began).Seconds(), "in_force": len(held)})
	return commands(func(name string, _ []int64) error {
		if name != "cost" {
			return fmt.Errorf("a consumer was told %s", name)
		}
		say(cost())
		return nil
	})
}
