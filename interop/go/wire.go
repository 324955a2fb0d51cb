// The messages on the wire, written by hand from the tables of the published definitions: no code
// generator is needed, and the old Go protobuf runtime (github.com/golang/protobuf 1.3.2, the one
// that the original library uses) reads them by their struct tags exactly as it reads generated
// ones. Nothing here knows fields from 1000 on; that is the point of `decode`.

package main

import (
	"github.com/golang/protobuf/proto"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

const (
	serviceV1     = "federation.resourcediscovery.v1alpha1.DiscoveryService"
	typeURLPrefix = "type.googleapis.com/"
	// The resource of v1alpha1, which is also the stream's resource_url.
	resourceURL = typeURLPrefix + "federation.types.v1alpha1.FederatedService"
)

// Operations of v1alpha1. In v1alpha2 the number 2 is DELETE.
const (
	opCreate int32 = 1
	opUpdate int32 = 2
	opDelete int32 = 3
)

// StreamRequest is v1alpha1's: the initial request, or the answer to one response.
type StreamRequest struct {
	ResourceUrl      string         `protobuf:"bytes,1,opt,name=resource_url,json=resourceUrl,proto3" json:"resource_url,omitempty"`
	ResponseNonce    string         `protobuf:"bytes,2,opt,name=response_nonce,json=responseNonce,proto3" json:"response_nonce,omitempty"`
	Status           *status.Status `protobuf:"bytes,3,opt,name=status,proto3" json:"status,omitempty"`
	XXX_unrecognized []byte         `json:"-"`
}

// StreamResponse is v1alpha1's: one change of one resource, whole.
type StreamResponse struct {
	Nonce            string     `protobuf:"bytes,1,opt,name=nonce,proto3" json:"nonce,omitempty"`
	ResourceUrl      string     `protobuf:"bytes,2,opt,name=resource_url,json=resourceUrl,proto3" json:"resource_url,omitempty"`
	Resource         *anypb.Any `protobuf:"bytes,3,opt,name=resource,proto3" json:"resource,omitempty"`
	Operation        int32      `protobuf:"varint,4,opt,name=operation,proto3" json:"operation,omitempty"`
	XXX_unrecognized []byte     `json:"-"`
}

// FederatedService is v1alpha1's resource.
type FederatedService struct {
	Name             string            `protobuf:"bytes,1,opt,name=name,proto3" json:"name,omitempty"`
	Description      string            `protobuf:"bytes,2,opt,name=description,proto3" json:"description,omitempty"`
	Tags             []string          `protobuf:"bytes,3,rep,name=tags,proto3" json:"tags,omitempty"`
	Labels           map[string]string `protobuf:"bytes,4,rep,name=labels,proto3" json:"labels,omitempty" protobuf_key:"bytes,1,opt,name=key,proto3" protobuf_val:"bytes,2,opt,name=value,proto3"`
	Fqdn             string            `protobuf:"bytes,5,opt,name=fqdn,proto3" json:"fqdn,omitempty"`
	Id               string            `protobuf:"bytes,6,opt,name=id,proto3" json:"id,omitempty"`
	San              string            `protobuf:"bytes,7,opt,name=san,proto3" json:"san,omitempty"`
	Protocols        []string          `protobuf:"bytes,8,rep,name=protocols,proto3" json:"protocols,omitempty"`
	Endpoints        []*Endpoint       `protobuf:"bytes,9,rep,name=endpoints,proto3" json:"endpoints,omitempty"`
	XXX_unrecognized []byte            `json:"-"`
}

// Endpoint is where the owner's ingress is.
type Endpoint struct {
	Address          string `protobuf:"bytes,1,opt,name=address,proto3" json:"address,omitempty"`
	Port             uint32 `protobuf:"varint,2,opt,name=port,proto3" json:"port,omitempty"`
	XXX_unrecognized []byte `json:"-"`
}

// StreamRequestV2 is v1alpha2's.
type StreamRequestV2 struct {
	ResourceUrl      string         `protobuf:"bytes,1,opt,name=resource_url,json=resourceUrl,proto3" json:"resource_url,omitempty"`
	ResponseNonce    string         `protobuf:"bytes,2,opt,name=response_nonce,json=responseNonce,proto3" json:"response_nonce,omitempty"`
	Status           *status.Status `protobuf:"bytes,3,opt,name=status,proto3" json:"status,omitempty"`
	Context          string         `protobuf:"bytes,4,opt,name=context,proto3" json:"context,omitempty"`
	XXX_unrecognized []byte         `json:"-"`
}

// StreamResponseV2 is v1alpha2's.
type StreamResponseV2 struct {
	Nonce            string     `protobuf:"bytes,1,opt,name=nonce,proto3" json:"nonce,omitempty"`
	ResourceUrl      string     `protobuf:"bytes,2,opt,name=resource_url,json=resourceUrl,proto3" json:"resource_url,omitempty"`
	ResourceId       string     `protobuf:"bytes,3,opt,name=resource_id,json=resourceId,proto3" json:"resource_id,omitempty"`
	Resource         *anypb.Any `protobuf:"bytes,4,opt,name=resource,proto3" json:"resource,omitempty"`
	Operation        int32      `protobuf:"varint,5,opt,name=operation,proto3" json:"operation,omitempty"`
	Context          string     `protobuf:"bytes,6,opt,name=context,proto3" json:"context,omitempty"`
	XXX_unrecognized []byte     `json:"-"`
}

// BidirectionalStream is v1alpha2's only message of the stream.
type BidirectionalStream struct {
	Request          *StreamRequestV2  `protobuf:"bytes,1,opt,name=request,proto3" json:"request,omitempty"`
	Response         *StreamResponseV2 `protobuf:"bytes,2,opt,name=response,proto3" json:"response,omitempty"`
	XXX_unrecognized []byte            `json:"-"`
}

func (m *StreamRequest) Reset()         { *m = StreamRequest{} }
func (m *StreamRequest) String() string { return proto.CompactTextString(m) }
func (*StreamRequest) ProtoMessage()    {}

func (m *StreamResponse) Reset()         { *m = StreamResponse{} }
func (m *StreamResponse) String() string { return proto.CompactTextString(m) }
func (*StreamResponse) ProtoMessage()    {}

func (m *FederatedService) Reset()         { *m = FederatedService{} }
func (m *FederatedService) String() string { return proto.CompactTextString(m) }
func (*FederatedService) ProtoMessage()    {}

// XXX_MessageName is what the Any's type URL ends in.
func (*FederatedService) XXX_MessageName() string {
	return "federation.types.v1alpha1.FederatedService"
}

func (m *Endpoint) Reset()         { *m = Endpoint{} }
func (m *Endpoint) String() string { return proto.CompactTextString(m) }
func (*Endpoint) ProtoMessage()    {}

func (m *StreamRequestV2) Reset()         { *m = StreamRequestV2{} }
func (m *StreamRequestV2) String() string { return proto.CompactTextString(m) }
func (*StreamRequestV2) ProtoMessage()    {}

func (m *StreamResponseV2) Reset()         { *m = StreamResponseV2{} }
func (m *StreamResponseV2) String() string { return proto.CompactTextString(m) }
func (*StreamResponseV2) ProtoMessage()    {}

func (m *BidirectionalStream) Reset()         { *m = BidirectionalStream{} }
func (m *BidirectionalStream) String() string { return proto.CompactTextString(m) }
func (*BidirectionalStream) ProtoMessage()    {}

// newEndpoint makes an endpoint.
func newEndpoint(address string, port uint32) *Endpoint {
	return &Endpoint{Address: address, Port: port}
}

// decodable names the messages that `decode` reads.
func decodable(name string) proto.Message {
	switch name {
	case "v1alpha1.StreamRequest":
		return &StreamRequest{}
	case "v1alpha1.StreamResponse":
		return &StreamResponse{}
	case "v1alpha2.BidirectionalStream":
		return &BidirectionalStream{}
	case "v1alpha2.StreamRequest":
		return &StreamRequestV2{}
	case "v1alpha2.StreamResponse":
		return &StreamResponseV2{}
	}
	return nil
}
