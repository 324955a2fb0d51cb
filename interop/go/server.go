// The owner's side of the wire, with the habits of the original Go server that other
// implementations have to live with (protocol text, section 4): empty nonces; any next message
// counts as the answer; response headers only with the first response; at most 4,096 messages a
// consumer; a subscription that fails on that limit leaves a consumer behind, and publishing stops
// at the first consumer that can't take a change; client pings tolerated every 40 s.

package main

import (
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/golang/protobuf/ptypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

const (
	bufferedChanges   = 4096
	toleratedInterval = 40 * time.Second
)

// server is what the owner's program needs of an implementation.
type server interface {
	Address() string
	Serve() error
	Stop()
	Create(*FederatedService) error
	Update(*FederatedService) error
	Delete(*FederatedService) error
}

// subscriber is one stream's.
type subscriber struct {
	url   string
	queue chan *StreamResponse
}

// offer queues without waiting.
func (s *subscriber) offer(change *StreamResponse) error {
	select {
	case s.queue <- change:
		return nil
	default:
		return fmt.Errorf("Discarding object due to overflow in stream %s", s.url)
	}
}

type lockStepServer struct {
	listener    net.Listener
	grpc        *grpc.Server
	state       func() []*FederatedService
	answers     bool
	mutex       sync.Mutex
	subscribers map[int]*subscriber
	next        int
}

func newServer(listen string, config *tls.Config, state func() []*FederatedService, answers bool) (server, error) {
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, err
	}
	s := &lockStepServer{
		listener: listener,
		grpc: grpc.NewServer(
			grpc.Creds(credentials.NewTLS(config)),
			grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: toleratedInterval, PermitWithoutStream: true}),
		),
		state:       state,
		answers:     answers,
		subscribers: map[int]*subscriber{},
	}
	stream := grpc.StreamDesc{
		StreamName:    "EstablishStream",
		Handler:       func(_ interface{}, stream grpc.ServerStream) error { return s.serveStream(stream) },
		ServerStreams: true,
		ClientStreams: true,
	}
	s.grpc.RegisterService(&grpc.ServiceDesc{ServiceName: serviceV1, HandlerType: (*interface{})(nil), Streams: []grpc.StreamDesc{stream}}, s)
	return s, nil
}

func (s *lockStepServer) Address() string { return s.listener.Addr().String() }
func (s *lockStepServer) Serve() error    { return s.grpc.Serve(s.listener) }
func (s *lockStepServer) Stop()           { s.grpc.Stop() }

func (s *lockStepServer) Create(service *FederatedService) error { return s.publish(service, opCreate) }
func (s *lockStepServer) Update(service *FederatedService) error { return s.publish(service, opUpdate) }
func (s *lockStepServer) Delete(service *FederatedService) error { return s.publish(service, opDelete) }

func response(service *FederatedService, operation int32) (*StreamResponse, error) {
	resource, err := ptypes.MarshalAny(service)
	if err != nil {
		return nil, err
	}
	return &StreamResponse{ResourceUrl: resource.TypeUrl, Resource: resource, Operation: operation}, nil
}

// publish queues a change for each subscriber, in no particular order, up to the first that can't
// take it.
func (s *lockStepServer) publish(service *FederatedService, operation int32) error {
	change, err := response(service, operation)
	if err != nil {
		return err
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for _, to := range s.subscribers {
		if to.url != change.ResourceUrl {
			continue
		}
		if err := to.offer(change); err != nil {
			return err
		}
	}
	return nil
}

// subscribe queues the full state. On an overflow the subscriber stays registered, full for ever.
func (s *lockStepServer) subscribe(url string) (int, *subscriber, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.next++
	new := &subscriber{url: url, queue: make(chan *StreamResponse, bufferedChanges)}
	s.subscribers[s.next] = new
	if url != resourceURL {
		return s.next, new, nil
	}
	for _, service := range s.state() {
		change, err := response(service, opCreate)
		if err != nil {
			return s.next, new, err
		}
		if err := new.offer(change); err != nil {
			return s.next, new, err
		}
	}
	return s.next, new, nil
}

func (s *lockStepServer) serveStream(stream grpc.ServerStream) error {
	var first StreamRequest
	if err := stream.RecvMsg(&first); err != nil {
		return err
	}
	tellUnknown(first.XXX_unrecognized)
	id, subscriber, err := s.subscribe(first.ResourceUrl)
	if err != nil {
		event("refused", fields{"resource_url": first.ResourceUrl, "error": err.Error()})
		return err
	}
	event("subscribed", fields{"resource_url": first.ResourceUrl, "services": len(subscriber.queue)})
	defer func() {
		s.mutex.Lock()
		delete(s.subscribers, id)
		s.mutex.Unlock()
		event("unsubscribed", fields{"resource_url": first.ResourceUrl})
	}()
	for {
		select {
		case change := <-subscriber.queue:
			if err := stream.SendMsg(change); err != nil {
				return err
			}
			var answer StreamRequest
			if err := stream.RecvMsg(&answer); err != nil {
				return err
			}
			tellUnknown(answer.XXX_unrecognized)
			if s.answers {
				event("answer", fields{
					"resource_url": answer.ResourceUrl, "nonce": answer.ResponseNonce, "has_status": answer.Status != nil,
					"code": answer.Status.GetCode(), "message": answer.Status.GetMessage(),
				})
			}
		case <-stream.Context().Done():
			return nil
		}
	}
}
