// The bench's owner: like the original server, a channel and a goroutine for each consumer, which sends one
// message and waits for the next one back. Beyond the channel's length changes are lost.

package main

import (
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/golang/protobuf/proto"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/types/known/anypb"
)

// serviceBytes is the encoded size of a service.
const serviceBytes = 480

type benchOwner struct {
	mutex     sync.Mutex
	services  []*FederatedService
	consumers map[int]chan *StreamResponse
	next      int
}

// benchService is one filled up to serviceBytes by its description, which begins with the marker that
// the bench's consumers read.
func benchService(i int, version int64) *FederatedService {
	name := fmt.Sprintf("service-%06d", i)
	s := &FederatedService{
		Name:        name,
		Description: fmt.Sprintf("#%d:%d:%d#", i, version, time.Now().UnixNano()),
		Tags:        []string{"bench", "payments"},
		Labels:      map[string]string{"team": "payments", "tier": "backend"},
		Fqdn:        name + ".owner.example",
		Id:          name + ".owner.example",
		San:         "spiffe://owner.example/gateway",
		Protocols:   []string{"HTTP"},
		Endpoints:   []*Endpoint{newEndpoint("127.0.0.1", 7444)},
	}
	if missing := serviceBytes - proto.Size(s); missing > 0 {
		s.Description += strings.Repeat("x", missing)
	}
	return s
}

func benchChange(s *FederatedService, operation int32) *StreamResponse {
	value, err := proto.Marshal(s)
	if err != nil {
		fail(err)
	}
	any := &anypb.Any{TypeUrl: resourceURL, Value: value}
	return &StreamResponse{ResourceUrl: resourceURL, Resource: any, Operation: operation}
}

// set makes a new version of a service and tells all consumers; a full channel loses it.
func (o *benchOwner) set(i int, version int64) {
	s := benchService(i, version)
	change := benchChange(s, opUpdate)
	o.mutex.Lock()
	defer o.mutex.Unlock()
	o.services[i] = s
	for _, changes := range o.consumers {
		select {
		case changes <- change:
		default:
		}
	}
}

func (o *benchOwner) subscribe() (int, chan *StreamResponse, error) {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	if len(o.services) > bufferedChanges {
		return 0, nil, fmt.Errorf("Discarding object due to overflow")
	}
	changes := make(chan *StreamResponse, bufferedChanges)
	for _, s := range o.services {
		changes <- benchChange(s, opCreate)
	}
	o.next++
	o.consumers[o.next] = changes
	return o.next, changes, nil
}

func (o *benchOwner) serve(stream grpc.ServerStream) error {
	var request StreamRequest
	if err := stream.RecvMsg(&request); err != nil {
		return err
	}
	id, changes, err := o.subscribe()
	if err != nil {
		return err
	}
	defer func() {
		o.mutex.Lock()
		delete(o.consumers, id)
		o.mutex.Unlock()
	}()
	for {
		select {
		case change := <-changes:
			if err := stream.SendMsg(change); err != nil {
				return err
			}
			if err := stream.RecvMsg(&request); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return nil
		}
	}
}

func (o *benchOwner) rate(aSecond, millis, from int64) (int64, int64) {
	keys := int64(len(o.services))
	whole := (aSecond*millis/1000 + keys - 1) / keys * keys
	version, began := from, time.Now()
	for done := int64(0); done < whole; {
		due := min(int64(time.Since(began).Seconds()*float64(aSecond)), whole)
		for ; done < due; done++ {
			version = from + done/keys
			o.set(int(done%keys), version)
		}
		time.Sleep(time.Millisecond)
	}
	return whole, version
}

func runBenchOwner(args []string) error {
	opts, err := benchFlags("bench-owner", args)
	if err != nil {
		return err
	}
	pair, pool, err := opts.identity("owner-by-name", "consumer-ca")
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	o := &benchOwner{consumers: map[int]chan *StreamResponse{}}
	for i := 0; i < opts.services; i++ {
		o.services = append(o.services, benchService(i, 1))
	}
	config := &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
	server := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(config)),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: toleratedInterval, PermitWithoutStream: true}),
	)
	handler := func(_ any, stream grpc.ServerStream) error { return o.serve(stream) }
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: serviceV1,
		HandlerType: (*any)(nil),
		Streams:     []grpc.StreamDesc{{StreamName: "EstablishStream", Handler: handler, ServerStreams: true, ClientStreams: true}},
	}, o)
	go func() {
		if err := server.Serve(listener); err != nil {
			fail(err)
		}
	}()
	say(map[string]any{"address": listener.Addr().String(), "service_bytes": serviceBytes})
	return commands(func(name string, n []int64) error {
		began := time.Now()
		switch {
		case name == "set" && len(n) == 3:
			for i := n[0]; i < n[0]+n[1]; i++ {
				o.set(int(i), n[2])
			}
			say(map[string]any{"changes": n[1], "version": n[2], "seconds": time.Since(began).Seconds()})
		case name == "rate" && len(n) == 3:
			changes, version := o.rate(n[0], n[1], n[2])
			say(map[string]any{"changes": changes, "version": version, "seconds": time.Since(began).Seconds()})
		case name == "cost":
			say(cost())
		default:
			return fmt.Errorf("an owner was told %s %v", name, n)
		}
		return nil
	})
}
