package life

import (
	"bytes"
	"encoding/json"
	"runtime"
	"strings"
	"testing"
)

func TestTheCommandLine(t *testing.T) {
	var out, errOut bytes.Buffer
	if code := Tell([]string{"--version"}, &out, &errOut); code != ExitOK || errOut.Len() != 0 {
		t.Error(code, errOut.String())
	}
	var versions Versions
	if err := json.Unmarshal(out.Bytes(), &versions); err != nil || versions.Go != runtime.Version() || !strings.HasPrefix(versions.Agent, "p2pd/") {
		t.Errorf("%v %+v", err, versions)
	}
	out.Reset()
	if code := Tell([]string{"--listen", "/ip4/0.0.0.0/tcp/0"}, &out, &errOut); code != ExitConfig || out.Len() != 0 || !strings.Contains(errOut.String(), "standard input") {
		t.Error(code, out.String(), errOut.String())
	}
}
