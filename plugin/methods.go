package plugin

import "net/http"

func (h *Handler) init(w http.ResponseWriter, r *http.Request) (any, error) {
	var request InitRequest
	if err := decode(w, r, &request); err != nil {
		return nil, err
	}
	if err := request.check(); err != nil {
		return nil, &requestError{http.StatusBadRequest, err}
	}
	return struct{}{}, h.driver.Init(request.Home, request.Options, request.UIDMaps, request.GIDMaps)
}

func create(w http.ResponseWriter, r *http.Request, create func(id, parent, label string, options map[string]string) error) (any, error) {
	var request CreateRequest
	if err := decodeFor(w, r, &request, &request.ID); err != nil {
		return nil, err
	}
	return struct{}{}, create(request.ID, request.Parent, request.MountLabel, request.StorageOpt)
}

func (h *Handler) remove(w http.ResponseWriter, r *http.Request) (any, error) {
	var request RemoveRequest
	if err := decodeFor(w, r, &request, &request.ID); err != nil {
		return nil, err
	}
	return struct{}{}, h.driver.Remove(request.ID)
}

func (h *Handler) get(w http.ResponseWriter, r *http.Request) (any, error) {
	var request GetRequest
	if err := decodeFor(w, r, &request, &request.ID); err != nil {
		return nil, err
	}
	dir, err := h.driver.Get(request.ID, request.MountLabel)
	return GetResponse{Dir: dir}, err
}

func (h *Handler) put(w http.ResponseWriter, r *http.Request) (any, error) {
	var request PutRequest
	if err := decodeFor(w, r, &request, &request.ID); err != nil {
		return nil, err
	}
	return struct{}{}, h.driver.Put(request.ID)
}

func (h *Handler) exists(w http.ResponseWriter, r *http.Request) (any, error) {
	var request ExistsRequest
	if err := decodeFor(w, r, &request, &request.ID); err != nil {
		return nil, err
	}
	return ExistsResponse{Exists: h.driver.Exists(request.ID)}, nil
}

func (h *Handler) status(w http.ResponseWriter, r *http.Request) (any, error) {
	if err := decodeNothing(w, r); err != nil {
		return nil, err
	}
	return StatusResponse{Status: h.driver.Status()}, nil
}

func (h *Handler) getMetadata(w http.ResponseWriter, r *http.Request) (any, error) {
	var request GetMetadataRequest
	if err := decodeFor(w, r, &request, &request.ID); err != nil {
		return nil, err
	}
	metadata, err := h.driver.GetMetadata(request.ID)
	return GetMetadataResponse{Metadata: metadata}, err
}

func (h *Handler) cleanup(w http.ResponseWriter, r *http.Request) (any, error) {
	if err := decodeNothing(w, r); err != nil {
		return nil, err
	}
	return struct{}{}, h.driver.Cleanup()
}

func (h *Handler) changes(w http.ResponseWriter, r *http.Request) (any, error) {
	var request ChangesRequest
	if err := decodeFor(w, r, &request, &request.ID); err != nil {
		return nil, err
	}
	changes, err := h.driver.Changes(request.ID, request.Parent)
	return ChangesResponse{Changes: changes}, err
}

func (h *Handler) diffSize(w http.ResponseWriter, r *http.Request) (any, error) {
	var request DiffSizeRequest
	if err := decodeFor(w, r, &request, &request.ID); err != nil {
		return nil, err
	}
	size, err := h.driver.DiffSize(request.ID, request.Parent)
	return DiffSizeResponse{Size: size}, err
}

func (h *Handler) capabilities(w http.ResponseWriter, r *http.Request) (any, error) {
	if err := decodeNothing(w, r); err != nil {
		return nil, err
	}
	return CapabilitiesResponse{Capabilities: h.driver.Capabilities()}, nil
}
