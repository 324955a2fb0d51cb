// A v1alpha1 peer on the Go gRPC and protobuf of the original Hamlet library's time, for tests and
// benches against real processes: `owner`, `consumer`, `decode`, which shows what the Go protobuf
// runtime makes of given bytes, and `bench-owner` and `bench-consumer`, which are measured. Commands come on standard input, events go to standard
// output as one JSON object a line; it ends when its input does. See README.md.
//
// It is not a mesh and keeps nothing: what it holds is gone with the process.

package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"sync"
	"time"
)

const usage = `usage: go-peer owner|consumer|decode|bench-owner|bench-consumer [flags]   (go-peer SUBCOMMAND -h lists the flags)`

func main() {
	if len(os.Args) < 2 {
		fail(errors.New(usage))
	}
	var err error
	switch os.Args[1] {
	case "owner":
		err = runOwner(os.Args[2:])
	case "consumer":
		err = runConsumer(os.Args[2:])
	case "decode":
		err = runDecode(os.Stdin)
	case "bench-owner":
		err = runBenchOwner(os.Args[2:])
	case "bench-consumer":
		err = runBenchConsumer(os.Args[2:])
	default:
		err = errors.New(usage)
	}
	if err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "go-peer:", err)
	os.Exit(1)
}

// fields of one event.
type fields map[string]interface{}

var (
	started = time.Now()
	output  sync.Mutex
)

// event writes one line.
func event(kind string, more fields) {
	line := fields{"event": kind, "at_ms": time.Since(started).Milliseconds()}
	for key, value := range more {
		line[key] = value
	}
	text, err := json.Marshal(line)
	if err != nil {
		fail(err)
	}
	output.Lock()
	defer output.Unlock()
	os.Stdout.Write(append(text, '\n'))
}

// tellUnknown tells of fields that v1alpha1 doesn't have; the original ignores them.
func tellUnknown(bytes []byte) {
	if len(bytes) > 0 {
		event("extension", fields{"bytes": len(bytes)})
	}
}

// identity are the flags that both roles have.
type identity struct {
	cert, key, ca *string
}

func identityFlags(set *flag.FlagSet) identity {
	return identity{
		cert: set.String("cert", "", "our certificate chain, PEM"),
		key:  set.String("key", "", "its private key, PEM"),
		ca:   set.String("ca", "", "roots that the peer is verified against, PEM"),
	}
}

// load reads the files.
func (i identity) load() (tls.Certificate, *x509.CertPool, error) {
	pair, err := tls.LoadX509KeyPair(*i.cert, *i.key)
	if err != nil {
		return pair, nil, err
	}
	pem, err := os.ReadFile(*i.ca)
	if err != nil {
		return pair, nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return pair, nil, fmt.Errorf("%s: no certificate in it", *i.ca)
	}
	return pair, pool, nil
}
