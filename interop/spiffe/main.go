// Command spiffe writes and reads SPIFFE bundles with go-spiffe, the reference implementation.
//
//	go run . write FOLDER    new bundles: what Hamlet's tests read
//	go run . read DOMAIN FILE    what a bundle says: sequence, hint, SHA-256 of each CA
package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var domain = spiffeid.RequireTrustDomainFromString("acme.example")

func must[T any](value T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return value
}

func authority(name string, key crypto.Signer) *x509.Certificate {
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(time.Now().UnixNano()),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:              time.Date(2076, 1, 1, 0, 0, 0, 0, time.UTC),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		URIs:                  []*url.URL{domain.ID().URL()},
	}
	der := must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))
	return must(x509.ParseCertificate(der))
}

func save(folder, name string, bytes []byte) {
	must(0, os.WriteFile(filepath.Join(folder, name), bytes, 0o644))
}

func write(folder string) {
	p256 := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	p384 := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	rsaKey := must(rsa.GenerateKey(rand.Reader, 2048))
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	keys := []struct {
		name string
		key  crypto.Signer
	}{{"p256", p256}, {"p384", p384}, {"rsa", rsaKey}, {"ed25519", ed}}

	all := spiffebundle.New(domain)
	all.SetSequenceNumber(7)
	all.SetRefreshHint(5 * time.Minute)
	var text []byte
	for _, k := range keys {
		ca := authority("go-spiffe "+k.name, k.key)
		all.AddX509Authority(ca)
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw})...)
	}
	save(folder, "certificates.pem", text)
	save(folder, "x509.json", must(all.Marshal()))
	must(0, all.AddJWTAuthority("a key for tokens", p256.Public()))
	save(folder, "x509-and-jwt.json", must(all.Marshal()))

	tokens := spiffebundle.New(domain)
	must(0, tokens.AddJWTAuthority("only tokens", p256.Public()))
	save(folder, "jwt-only.json", must(tokens.Marshal()))
}

func read(name, path string) {
	found := must(spiffebundle.Load(spiffeid.RequireTrustDomainFromString(name), path))
	says := map[string]any{}
	if n, ok := found.SequenceNumber(); ok {
		says["sequence"] = n
	}
	if d, ok := found.RefreshHint(); ok {
		says["refreshHint"] = d.Seconds()
	}
	prints := []string{}
	for _, ca := range found.X509Authorities() {
		prints = append(prints, fmt.Sprintf("%x", sha256.Sum256(ca.Raw)))
	}
	says["authorities"] = prints
	fmt.Println(string(must(json.Marshal(says))))
}

func main() {
	switch {
	case len(os.Args) == 3 && os.Args[1] == "write":
		write(os.Args[2])
	case len(os.Args) == 4 && os.Args[1] == "read":
		read(os.Args[2], os.Args[3])
	default:
		fmt.Fprintln(os.Stderr, "usage: spiffe write FOLDER | spiffe read DOMAIN FILE")
		os.Exit(2)
	}
}
