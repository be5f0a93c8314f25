package image

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// candidate is one image of a layout or archive, with its names and digests.
type candidate struct {
	names  []string      // any of them may be another's too
	digest digest.Digest // "": not known
}

// matches reports whether a reference means the image in the list of all: a name, a digest, or @ and a place, from 0.
func (c candidate) matches(place int, what string) bool {
	if what == "@"+strconv.Itoa(place) || c.digest != "" && string(c.digest) == what {
		return true
	}
	whole := canonicalName(what)
	for _, name := range c.names {
		if name == what || whole != "" && canonicalName(name) == whole {
			return true
		}
	}
	return false
}

// choose returns the places of the images that a reference means, of all if it is "".
func choose(all []candidate, what string) (places []int) {
	for i, c := range all {
		if what == "" || c.matches(i, what) {
			places = append(places, i)
		}
	}
	return places
}

// maxOffered is how many images an error names.
const maxOffered = 20

// offer lists references to some of all images, each by the first of its names that is no other's, or by its place.
func offer(ref Reference, all []candidate, places []int) string {
	var words []string
	for n, place := range places {
		if n == maxOffered {
			words = append(words, fmt.Sprintf("and %d others", len(places)-n))
			break
		}
		c := all[place]
		ref.Image = "@" + strconv.Itoa(place)
		isOwn := func(name string) bool { return clip(name) == name && len(choose(all, name)) == 1 }
		if i := slices.IndexFunc(c.names, isOwn); i >= 0 {
			ref.Image = c.names[i]
		}
		words = append(words, ref.String())
	}
	return strings.Join(words, ", ")
}

// errNoImage says that the image of a reference is not among all.
func errNoImage(ref Reference, all []candidate) error {
	return fault.New(errdefs.ErrNotFound, "no image %q there; there are %s", clip(ref.Image), offer(ref, all, choose(all, "")))
}

// errSeveral says that several images are meant, and how to choose one.
func errSeveral(ref Reference, all []candidate, places []int) error {
	return fault.New(errdefs.ErrInvalidArgument, "%d images match, name one of them: %s", len(places), offer(ref, all, places))
}
