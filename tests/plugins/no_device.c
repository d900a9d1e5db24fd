/* A PJRT plugin that loads and starts, and finds no device. */
#include <string.h>

#include "xla/pjrt/c/pjrt_c_api.h"

static const char kMessage[] = "no Gaudi device was found";

/* The only error there is. */
struct PJRT_Error { int unused; };
static struct PJRT_Error error;

static void DestroyError(PJRT_Error_Destroy_Args* args) { (void)args; }

static void Message(PJRT_Error_Message_Args* args) {
  args->message = kMessage;
  args->message_size = strlen(kMessage);
}

static PJRT_Error* GetCode(PJRT_Error_GetCode_Args* args) {
  args->code = PJRT_Error_Code_NOT_FOUND;
  return NULL;
}

static PJRT_Error* Initialize(PJRT_Plugin_Initialize_Args* args) {
  (void)args;
  return NULL;
}

static PJRT_Error* Attributes(PJRT_Plugin_Attributes_Args* args) {
  args->num_attributes = 0;
  return NULL;
}

static PJRT_Error* CreateClient(PJRT_Client_Create_Args* args) {
  (void)args;
  return &error;
}

const PJRT_Api* GetPjrtApi(void) {
  static PJRT_Api api;
  api.struct_size = PJRT_Api_STRUCT_SIZE;
  api.pjrt_api_version.struct_size = PJRT_Api_Version_STRUCT_SIZE;
  api.pjrt_api_version.major_version = PJRT_API_MAJOR;
  api.pjrt_api_version.minor_version = PJRT_API_MINOR;
  api.PJRT_Error_Destroy = DestroyError;
  api.PJRT_Error_Message = Message;
  api.PJRT_Error_GetCode = GetCode;
  api.PJRT_Plugin_Initialize = Initialize;
  api.PJRT_Plugin_Attributes = Attributes;
  api.PJRT_Client_Create = CreateClient;
  return &api;
}
