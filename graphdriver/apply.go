package graphdriver

import (
	"context"
	"io"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/go-archive"
	"github.com/moby/go-archive/compression"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/layertar"
)

// ApplyUncompressedLayer extracts a layer tar, uncompressed, into the directory dest and returns the sum
// of the sizes in its headers, in bytes. [NaiveDiffDriver] unpacks with it; a program may put another
// function in its place before it opens a driver.
//
// Of the options, which may be nil, it honours IDMap and BestEffortXattrs. Any other that is set is
// errdefs.ErrNotImplemented, before anything is read or written.
var ApplyUncompressedLayer = applyUncompressedLayer

func applyUncompressedLayer(dest string, layer io.Reader, options *archive.TarOptions) (int64, error) {
	if options == nil {
		options = &archive.TarOptions{}
	}
	if set := unhonoured(options); len(set) > 0 {
		return 0, fault.New(errdefs.ErrNotImplemented, "apply layer: options %s", strings.Join(set, ", "))
	}
	xattrs := layertar.ExactXattrs
	if options.BestEffortXattrs {
		xattrs = layertar.BestEffortXattrs
	}
	return layertar.Apply(context.Background(), dest, layer, layertar.ApplyOptions{IDMap: options.IDMap, Xattrs: xattrs})
}

// unhonoured names the options that are set and that layertar does not have.
func unhonoured(o *archive.TarOptions) []string {
	var set []string
	for _, option := range []struct {
		name string
		set  bool
	}{
		{"IncludeFiles", len(o.IncludeFiles) > 0},
		{"ExcludePatterns", len(o.ExcludePatterns) > 0},
		{"Compression", o.Compression != compression.None},
		{"NoLchown", o.NoLchown},
		{"ChownOpts", o.ChownOpts != nil},
		{"IncludeSourceDir", o.IncludeSourceDir},
		{"WhiteoutFormat", o.WhiteoutFormat != archive.AUFSWhiteoutFormat},
		{"NoOverwriteDirNonDir", o.NoOverwriteDirNonDir},
		{"RebaseNames", len(o.RebaseNames) > 0},
		{"InUserNS", o.InUserNS},
	} {
		if option.set {
			set = append(set, option.name)
		}
	}
	return set
}
