// The messages of v1alpha1, written by hand from the tables of the published definitions; the
// protobuf runtime reads them by their struct tags.

package main

import (
	"github.com/golang/protobuf/proto"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

const (
	serviceName = "federation.resourcediscovery.v1alpha1.DiscoveryService"
	resourceURL = "type.googleapis.com/federation.types.v1alpha1.FederatedService"

	opCreate int32 = 1
	opUpdate int32 = 2
)

// StreamRequest is the initial request, or the answer to one response.
type StreamRequest struct {
	ResourceUrl   string         `protobuf:"bytes,1,opt,name=resource_url,json=resourceUrl,proto3"`
	ResponseNonce string         `protobuf:"bytes,2,opt,name=response_nonce,json=responseNonce,proto3"`
	Status        *status.Status `protobuf:"bytes,3,opt,name=status,proto3"`
}

// StreamResponse is one change of one resource, whole.
type StreamResponse struct {
	Nonce       string     `protobuf:"bytes,1,opt,name=nonce,proto3"`
	ResourceUrl string     `protobuf:"bytes,2,opt,name=resource_url,json=resourceUrl,proto3"`
	Resource    *anypb.Any `protobuf:"bytes,3,opt,name=resource,proto3"`
	Operation   int32      `protobuf:"varint,4,opt,name=operation,proto3"`
}

// FederatedService is the resource.
type FederatedService struct {
	Name        string            `protobuf:"bytes,1,opt,name=name,proto3"`
	Description string            `protobuf:"bytes,2,opt,name=description,proto3"`
	Tags        []string          `protobuf:"bytes,3,rep,name=tags,proto3"`
	Labels      map[string]string `protobuf:"bytes,4,rep,name=labels,proto3" protobuf_key:"bytes,1,opt,name=key,proto3" protobuf_val:"bytes,2,opt,name=value,proto3"`
	Fqdn        string            `protobuf:"bytes,5,opt,name=fqdn,proto3"`
	Id          string            `protobuf:"bytes,6,opt,name=id,proto3"`
	San         string            `protobuf:"bytes,7,opt,name=san,proto3"`
	Protocols   []string          `protobuf:"bytes,8,rep,name=protocols,proto3"`
	Endpoints   []*Endpoint       `protobuf:"bytes,9,rep,name=endpoints,proto3"`
}

// Endpoint of a service.
type Endpoint struct {
	Address string `protobuf:"bytes,1,opt,name=address,proto3"`
	Port    uint32 `protobuf:"varint,2,opt,name=port,proto3"`
}

func (m *StreamRequest) Reset()            { *m = StreamRequest{} }
func (m *StreamRequest) String() string    { return proto.CompactTextString(m) }
func (*StreamRequest) ProtoMessage()       {}
func (m *StreamResponse) Reset()           { *m = StreamResponse{} }
func (m *StreamResponse) String() string   { return proto.CompactTextString(m) }
func (*StreamResponse) ProtoMessage()      {}
func (m *FederatedService) Reset()         { *m = FederatedService{} }
func (m *FederatedService) String() string { return proto.CompactTextString(m) }
func (*FederatedService) ProtoMessage()    {}
func (m *Endpoint) Reset()                 { *m = Endpoint{} }
func (m *Endpoint) String() string         { return proto.CompactTextString(m) }
func (*Endpoint) ProtoMessage()            {}
