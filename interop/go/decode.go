// What the Go protobuf runtime makes of bytes: lines of `MESSAGE HEX` in, what it understood out.

package main

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"strings"

	"github.com/golang/protobuf/proto"
)

func runDecode(input io.Reader) error {
	lines := bufio.NewScanner(input)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) != 2 {
			return fmt.Errorf("a line is MESSAGE HEX")
		}
		message := decodable(words[0])
		if message == nil {
			return fmt.Errorf("unknown message %s", words[0])
		}
		wire, err := hex.DecodeString(words[1])
		if err != nil {
			return err
		}
		if err := proto.Unmarshal(wire, message); err != nil {
			event("undecodable", fields{"message": words[0], "error": err.Error()})
			continue
		}
		// What this runtime understood, encoded anew without what it didn't.
		all := proto.Size(message)
		proto.DiscardUnknown(message)
		known, err := proto.Marshal(message)
		if err != nil {
			return err
		}
		event("decoded", fields{"message": words[0], "fields": message, "known": hex.EncodeToString(known), "unknown_bytes": all - proto.Size(message)})
	}
	return lines.Err()
}
